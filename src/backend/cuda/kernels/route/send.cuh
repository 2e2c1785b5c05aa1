// SPDX-License-Identifier: Apache-2.0
// The sending half of the routing update: a rank's tokens become records in the windows of the
// ranks whose experts they select.
#pragma once

#include "backend/cuda/blocks/route.h"
#include "backend/cuda/kernels/common/bit_cast.cuh"
#include "backend/cuda/kernels/common/report.cuh"
#include "backend/cuda/kernels/common/routing_view.cuh"
#include "backend/cuda/kernels/common/token_group.cuh"
#include "backend/cuda/kernels/common/warp.cuh"
#include "protocol/at.h"
#include "protocol/records.h"
#include "protocol/shape.h"

namespace hep::route {

// What is counted, and what then tells the next index to give out: selections by expert, rows by
// rank, selections by rank.
struct Counters {
  uint32_t* by_expert;
  uint32_t* rows;
  uint32_t* selections;

  __device__ Counters(uint32_t* memory, const Shape& shape)
      : by_expert(memory), rows(memory + shape.num_experts), selections(rows + shape.num_ranks) {}
};

// Shared memory while sending, send_bytes() of it.
struct SendMemory {
  Selection* sorted;   // [warps][kWarpSize]
  uint32_t* totals;    // [counters] of this rank, over all blocks
  uint32_t* counters;  // [warps][counters]

  __device__ SendMemory(void* shared, const Shape& shape, int warps)
      : sorted(static_cast<Selection*>(shared)),
        totals(reinterpret_cast<uint32_t*>(sorted + warps * kWarpSize)),
        counters(totals + num_counters(shape)) {}
};

__device__ inline TokenRange tokens_of_warp(const RouteArgs& args) {
  const int warps = gridDim.x * (blockDim.x / kWarpSize);
  const int warp = blockIdx.x * (blockDim.x / kWarpSize) + warp_index();
  return part_of_tokens(args.num_tokens, warp, ceil_div(args.num_tokens, warps));
}

// The expert of a selection.
template <typename Index>
__device__ int expert_at(const RouteArgs& args, int64_t selection) {
  const Index id = static_cast<const Index*>(args.indices)[selection];
  return id >= 0 && id < args.context.shape().num_experts ? static_cast<int>(id) : kNone;
}

template <typename Index>
__device__ void report_bad_index(const RouteArgs& args, int64_t selection) {
  const Index id = static_cast<const Index*>(args.indices)[selection];
  if (id >= -1 && id < args.context.shape().num_experts) return;
  record_bad_index(args.context.firsts, args.context.host, selection / args.top_k,
                   selection % args.top_k, id);
}

// The expert that the lane's selection has chosen, of the tokens from `first` on.
template <typename Index>
__device__ int expert_of_warp_lane(const RouteArgs& args, const SelectionWarpLanes& lanes,
                                   int first, int end) {
  const int token = first + lanes.group;
  if (lanes.group >= lanes.groups || token >= end) return kNone;
  return expert_at<Index>(args, static_cast<int64_t>(token) * args.top_k + lanes.index);
}

// Counts the warp's tokens. `first_expert` is that of the lane's first selection. Returns to lane 0
// the most selections that a token has made.
template <typename Index>
__device__ uint32_t count_tokens(const RouteArgs& args, TokenRange range, int first_expert,
                                 uint32_t* memory) {
  const Shape& shape = args.context.shape();
  const SelectionWarpLanes lanes(args.top_k);
  const RankOfExpert rank_of(shape);
  const Counters counters(memory, shape);
  for (int i = warp_lane(); i < num_counters(shape); i += kWarpSize) memory[i] = 0;
  __syncwarp();

  uint32_t most = 0;
  int next_expert = first_expert;
  for (int first = range.begin; first < range.end; first += lanes.groups) {
    const int expert = next_expert;
    next_expert = expert_of_warp_lane<Index>(args, lanes, first + lanes.groups, range.end);
    const int rank = expert >= 0 ? rank_of(expert) : kNone;
    most = max(most, __popc(__ballot_sync(kFullWarp, rank != kNone) & lanes.of_group));
    const uint32_t same_rank = __match_any_sync(kFullWarp, rank);
    // The first of a token's selections that goes to a rank stands for the row.
    const uint32_t rows = __ballot_sync(
        kFullWarp, rank != kNone && (same_rank & lanes.of_group & warp_lanes_below()) == 0);
    if (rank != kNone) {
      atomicAdd(&counters.by_expert[expert], 1u);
      if ((same_rank & warp_lanes_below()) == 0) {
        counters.rows[rank] += __popc(same_rank & rows);
        counters.selections[rank] += __popc(same_rank);
      }
    } else if (lanes.group < lanes.groups && first + lanes.group < range.end) {
      report_bad_index<Index>(args,
                              static_cast<int64_t>(first + lanes.group) * args.top_k + lanes.index);
    }
    __syncwarp();
  }
  return __reduce_max_sync(kFullWarp, lanes.group < lanes.groups ? most : 0);
}

// Loads that a thread has under way at once.
constexpr int kWarpsAtOnce = 8;
constexpr int kBlockLoadsAtOnce = 4;

// Lanes that share a counter, where there are threads for it; each takes a part of the warps, or of
// the blocks. (One rank: with a lane for each counter an update of 16 experts took 18.3 us instead
// of 17.5; with a warp for each counter one of 4096 experts took 281 us instead of 45.)
constexpr int kLanesOfCounter = 4;

// Which counters the calling lane takes, and its part of each.
template <int kLanes>
struct CounterShare {
  int part, first, stride;
  uint32_t mask;  // of the lanes that share a counter

  __device__ CounterShare()
      : part(threadIdx.x % kLanes),
        first(threadIdx.x / kLanes),
        stride(blockDim.x / kLanes),
        mask(((1u << kLanes) - 1) << (warp_lane() - part)) {}

  __device__ uint32_t inclusive_sum(uint32_t value) const {
#pragma unroll
    for (int distance = 1; distance < kLanes; distance *= 2) {
      const uint32_t below = __shfl_up_sync(mask, value, distance, kLanes);
      if (part >= distance) value += below;
    }
    return value;
  }
  __device__ uint32_t sum(uint32_t value) const {
#pragma unroll
    for (int distance = 1; distance < kLanes; distance *= 2)
      value += __shfl_xor_sync(mask, value, distance, kLanes);
    return value;
  }
};

// Makes the counters of each warp start where those of the block's warps before it end, and writes
// the block's sums to global memory.
template <int kLanes>
__device__ void sum_over_warps(const RouteArgs& args, const SendMemory& memory) {
  const int entries = num_counters(args.context.shape());
  const int warps = blockDim.x / kWarpSize;
  const int stride = block_count_stride(gridDim.x);
  const CounterShare<kLanes> share;
  const int warps_of_lane = ceil_div(warps, kLanes);
  const int begin = min(share.part * warps_of_lane, warps);
  const int end = min(begin + warps_of_lane, warps);
  for (int i = share.first; i < entries; i += share.stride) {
    const auto load = [&](uint32_t warp) { return memory.counters[warp * entries + i]; };
    uint32_t before = 0;
    if constexpr (kLanes > 1) {
      uint32_t sum = 0;
      for_each_loaded<kWarpsAtOnce>(begin, 1, end, load,
                                    [&](uint32_t, uint32_t count) { sum += count; });
      before = share.inclusive_sum(sum) - sum;
    }
    for_each_loaded<kWarpsAtOnce>(begin, 1, end, load, [&](uint32_t warp, uint32_t count) {
      memory.counters[warp * entries + i] = before;
      before += count;
    });
    if (share.part == kLanes - 1)
      args.context.block_counts[static_cast<size_t>(i) * stride + blockIdx.x] = before;
  }
}

// What blocks have counted of something, and those of them before this block.
struct BlockSums {
  uint32_t before = 0, total = 0;

  __device__ void add(int block, uint32_t count) {
    if (block < blockIdx.x) before += count;
    if (block < gridDim.x) total += count;
  }
};

// The calling lane's part of them.
template <int kLanes>
__device__ BlockSums load_block_sums(const RouteArgs& args, const CounterShare<kLanes>& share,
                                     int counter) {
  static_assert(kBlocksOfLoad == 4);
  const int stride = block_count_stride(gridDim.x);
  const auto* counts = reinterpret_cast<const uint4*>(args.context.block_counts +
                                                      static_cast<size_t>(counter) * stride);
  BlockSums sums;
  for_each_loaded<kBlockLoadsAtOnce>(
      share.part, kLanes, stride / kBlocksOfLoad, [&](uint32_t i) { return __ldcg(counts + i); },
      [&](uint32_t i, const uint4& four) {
        sums.add(4 * i, four.x);
        sums.add(4 * i + 1, four.y);
        sums.add(4 * i + 2, four.z);
        sums.add(4 * i + 3, four.w);
      });
  return sums;
}

// Adds what the blocks before this one have counted, and finds the totals.
template <int kLanes>
__device__ void sum_over_blocks(const RouteArgs& args, const SendMemory& memory) {
  const int entries = num_counters(args.context.shape());
  const int warps = blockDim.x / kWarpSize;
  const CounterShare<kLanes> share;
  for (int i = share.first; i < entries; i += share.stride) {
    const BlockSums sums = load_block_sums(args, share, i);
    const uint32_t before = share.sum(sums.before);
    const uint32_t total = share.sum(sums.total);
    if (share.part == 0) memory.totals[i] = total;
    for_each_loaded<kWarpsAtOnce>(
        share.part, kLanes, warps,
        [&](uint32_t warp) { return memory.counters[warp * entries + i]; },
        [&](uint32_t warp, uint32_t count) {
          memory.counters[warp * entries + i] = count + before;
        });
  }
  __syncthreads();
}

// Each destination's header and counts are sent by one warp of one block.
__device__ inline void send_headers(const RouteArgs& args, const SendMemory& memory,
                                    uint64_t epoch) {
  const KernelContext& context = args.context;
  const Counters totals(memory.totals, context.shape());
  const int local_experts = context.shape().num_local_experts();
  const int warps = blockDim.x / kWarpSize;
  for (int rank = warp_index() * gridDim.x + blockIdx.x; rank < context.num_ranks();
       rank += warps * gridDim.x) {
    void* window = context.windows[rank];
    if (warp_lane() == 0) {
      const RecordHeader header{
          static_cast<uint32_t>(args.num_tokens), totals.rows[rank], totals.selections[rank],
          static_cast<uint16_t>(args.top_k),
          static_cast<uint16_t>(__ldcg(&context.state->most_selections[epoch & 1]))};
      *at<RecordHeader>(window, context.window_layout.header_at(epoch, context.rank)) = header;
    }
    uint32_t* counts = at<uint32_t>(window, context.window_layout.counts_at(epoch, context.rank));
    for (int e = warp_lane(); e < local_experts; e += kWarpSize)
      counts[e] = totals.by_expert[rank * local_experts + e];
  }
}

// Gives a selection its index among those of its expert, in (token, k) order, then sorts.
__device__ inline Selection sort_selections(const SelectionWarpLanes& lanes, int top_k, int expert,
                                            const Counters& next, Selection* sorted) {
  const uint32_t same = __match_any_sync(kFullWarp, expert);
  const int before = __popc(same & warp_lanes_below());
  const uint32_t index = expert != kNone ? next.by_expert[expert] + before : 0;
  __syncwarp();
  if (expert != kNone && before == 0) next.by_expert[expert] += __popc(same);

  return sort_by_expert(lanes, top_k, expert, index, sorted);
}

// Sends a warp's records.
struct RecordSender {
  const RouteArgs& args;
  SelectionWarpLanes lanes;
  RankOfExpert rank_of;
  Counters next;  // what to give out
  uint64_t epoch;

  // Writes the records of sorted tokens, from `first` on, into the windows of their destinations.
  // Lanes with the same destination write neighbouring records.
  __device__ void send(int first, int end, Selection selection) const {
    const KernelContext& context = args.context;
    const bool valid = lanes.group < lanes.groups && selection.expert != kNoExpert;
    const int rank = valid ? rank_of(selection.expert) : kNone;
    const uint32_t same_rank = __match_any_sync(kFullWarp, rank);
    const uint32_t rows =
        __ballot_sync(kFullWarp, valid && (same_rank & lanes.of_group & warp_lanes_below()) == 0);
    const int token = first + lanes.group;

    if (valid) {
      void* window = context.windows[rank];
      const uint32_t index = next.selections[rank] + __popc(same_rank & warp_lanes_below());
      selection.expert -= rank * context.shape().num_local_experts();
      Selection* selections =
          at<Selection>(window, context.window_layout.selections_at(epoch, context.rank));
      reinterpret_cast<uint2*>(selections)[index] = bit_cast<uint2>(selection);
      if (rows >> warp_lane() & 1) {
        const uint32_t row_index = next.rows[rank] + __popc(same_rank & rows & warp_lanes_below());
        const uint32_t ordinal = __popc(rows & lanes.of_group & warp_lanes_below());
        const Row row{static_cast<uint32_t>(token),
                      index,
                      static_cast<uint16_t>(__popc(same_rank & lanes.of_group)),
                      static_cast<uint16_t>(ordinal),
                      static_cast<uint16_t>(context.rank),
                      0};
        Row* records = at<Row>(window, context.window_layout.rows_at(epoch, context.rank));
        reinterpret_cast<uint4*>(records)[row_index] = bit_cast<uint4>(row);
        routing_of(args).sent_rows()[token * context.shape().max_partials() + ordinal] = {
            static_cast<uint16_t>(rank), static_cast<uint16_t>(row_index)};
      }
    }
    __syncwarp();
    if (valid && (same_rank & warp_lanes_below()) == 0) {
      next.rows[rank] += __popc(same_rank & rows);
      next.selections[rank] += __popc(same_rank);
    }
    if (lanes.group < lanes.groups && lanes.index == 0 && token < end)
      routing_of(args).partial_counts()[token] = __popc(rows & lanes.of_group);
    __syncwarp();
  }
};

template <typename Index>
__device__ void send_records(const RouteArgs& args, TokenRange range, int first_expert,
                             const SendMemory& memory, uint64_t epoch) {
  const Shape& shape = args.context.shape();
  const RecordSender sender{args, SelectionWarpLanes(args.top_k), RankOfExpert(shape),
                            Counters(memory.counters + warp_index() * num_counters(shape), shape),
                            epoch};
  const SelectionWarpLanes& lanes = sender.lanes;
  Selection* sorted = memory.sorted + warp_index() * kWarpSize;
  int next_expert = first_expert;
  for (int first = range.begin; first < range.end; first += lanes.groups) {
    const int expert = next_expert;
    next_expert = expert_of_warp_lane<Index>(args, lanes, first + lanes.groups, range.end);
    if (lanes.group < lanes.groups && first + lanes.group < range.end)
      routing_of(args).own_experts()[first * args.top_k + warp_lane()] = expert;
    sender.send(first, range.end, sort_selections(lanes, args.top_k, expert, sender.next, sorted));
  }
}

// Tells the peers that this block's records are there. Each block does so by itself: to find out
// which one is the last would take longer.
__device__ inline void signal_records(const RouteArgs& args, uint64_t epoch) {
  const KernelContext& context = args.context;
  const uint64_t offset = context.window_layout.block_records_at(context.rank, blockIdx.x);
  __syncthreads();
  for (int rank = threadIdx.x; rank < context.num_ranks(); rank += blockDim.x)
    ptx::st_release_sys(at<uint64_t>(context.windows[rank], offset), epoch);
}

}  // namespace hep::route
