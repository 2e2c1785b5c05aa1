// SPDX-License-Identifier: Apache-2.0
// The sending half of the routing update: a rank's tokens become records in the windows of the ranks
// whose experts they select.
#pragma once

#include "cuda/kernels/signal.cuh"
#include "cuda/kernels/warp.cuh"

namespace hep {

// A warp turns tokens into records in groups of up to 32 tokens and this many selections.
constexpr int kGroupSelections = 256;
static_assert(kGroupSelections >= kMaxTopK);

constexpr uint16_t kNoExpert = 0xffff;
static_assert(kMaxExperts <= kNoExpert);

struct GroupBuffers {
  uint16_t experts[kGroupSelections];    // kNoExpert: no selection
  uint32_t index[kGroupSelections];      // among the source's selections of the expert
  Selection sorted[kGroupSelections];    // each token's, by (expert, k); experts are global
  Selection outgoing[kGroupSelections];  // of one destination
};

// Shared memory while sending. Counters are first counts, then the next index to give out.
struct SendMemory {
  uint32_t* totals;          // [E + R] of this rank, over all blocks: by expert, then rows by rank
  uint32_t* counters;        // [warps][E + R] by expert, then rows by rank
  uint32_t* next_selection;  // [warps][R]
  GroupBuffers* groups;      // [warps]

  __device__ SendMemory(void* shared, const Shape& shape, int warps) {
    const int entries = shape.num_experts + shape.num_ranks;
    groups = static_cast<GroupBuffers*>(shared);
    totals = reinterpret_cast<uint32_t*>(groups + warps);
    counters = totals + entries;
    next_selection = counters + warps * entries;
  }

  static size_t bytes(const Shape& shape, int warps) {
    const size_t entries = shape.num_experts + shape.num_ranks;
    return warps * sizeof(GroupBuffers) +
           sizeof(uint32_t) * (entries + warps * (entries + shape.num_ranks));
  }
};

struct TokenRange {
  int begin, end;
};

__device__ inline TokenRange tokens_of_warp(const RouteArgs& args) {
  const int warps = gridDim.x * (blockDim.x / kWarpSize);
  const int warp = blockIdx.x * (blockDim.x / kWarpSize) + warp_index();
  const int tokens = ceil_div(args.num_tokens, warps);
  return {min(warp * tokens, args.num_tokens), min((warp + 1) * tokens, args.num_tokens)};
}

// The expert of a selection, -1 for none.
template <typename Index>
__device__ int expert_at(const RouteArgs& args, int64_t selection) {
  const Index id = static_cast<const Index*>(args.indices)[selection];
  return id >= 0 && id < args.context.shape().num_experts ? static_cast<int>(id) : -1;
}

template <typename Index>
__device__ void report_bad_index(const RouteArgs& args, int64_t selection) {
  const Index id = static_cast<const Index*>(args.indices)[selection];
  if (id >= -1 && id < args.context.shape().num_experts) return;
  HostState* host = args.context.host;
  if (atomicCAS_system(&host->bad_index_set, 0u, 1u) != 0) return;
  volatile HostState* record = host;
  record->bad_index_token = selection / args.top_k;
  record->bad_index_k = selection % args.top_k;
  record->bad_index_value = id;
  __threadfence_system();
  record->bad_index_ready = 1;
}

// The ranks that a token selects.
struct RankSet {
  uint64_t words[2] = {0, 0};
  static_assert(kMaxRanks <= 128);

  __device__ void insert(int rank) { words[rank / 64] |= uint64_t{1} << (rank % 64); }
  __device__ bool contains(int rank) const { return words[rank / 64] >> (rank % 64) & 1; }
};

// Counts the warp's selections by expert and its rows by destination.
template <typename Index>
__device__ void count_tokens(const RouteArgs& args, TokenRange range, uint32_t* counters) {
  const Shape& shape = args.context.shape();
  const int local_experts = shape.num_local_experts();
  for (int i = lane_index(); i < shape.num_experts + shape.num_ranks; i += kWarpSize)
    counters[i] = 0;
  __syncwarp();

  for (int first = range.begin; first < range.end; first += kWarpSize) {
    const int token = first + lane_index();
    RankSet ranks;
    for (int k = 0; token < range.end && k < args.top_k; ++k) {
      const int64_t selection = static_cast<int64_t>(token) * args.top_k + k;
      const int expert = expert_at<Index>(args, selection);
      if (expert < 0) {
        report_bad_index<Index>(args, selection);
        continue;
      }
      atomicAdd(&counters[expert], 1u);
      ranks.insert(expert / local_experts);
    }
    for (int rank = 0; rank < shape.num_ranks; ++rank) {
      const uint32_t lanes = __ballot_sync(kFullWarp, ranks.contains(rank));
      if (lane_index() == 0) counters[shape.num_experts + rank] += __popc(lanes);
    }
  }
  __syncwarp();
}

// Makes the counters of each warp start where those of the block's warps before it end, and writes
// the block's sums to global memory.
__device__ inline void sum_over_warps(const RouteArgs& args, const SendMemory& memory) {
  const int entries = args.context.shape().num_experts + args.context.num_ranks();
  const int warps = blockDim.x / kWarpSize;
  for (int i = threadIdx.x; i < entries; i += blockDim.x) {
    uint32_t sum = 0;
    for (int warp = 0; warp < warps; ++warp) {
      uint32_t& counter = memory.counters[warp * entries + i];
      const uint32_t count = counter;
      counter = sum;
      sum += count;
    }
    args.context.block_counts[static_cast<size_t>(blockIdx.x) * entries + i] = sum;
  }
}

// Adds what the blocks before this one have counted, and finds the totals.
__device__ inline void sum_over_blocks(const RouteArgs& args, const SendMemory& memory) {
  const int entries = args.context.shape().num_experts + args.context.num_ranks();
  const int warps = blockDim.x / kWarpSize;
  for (int i = threadIdx.x; i < entries; i += blockDim.x) {
    uint32_t before = 0, total = 0;
    for (int block = 0; block < gridDim.x; ++block) {
      const uint32_t count =
          __ldcg(args.context.block_counts + static_cast<size_t>(block) * entries + i);
      if (block < blockIdx.x) before += count;
      total += count;
    }
    for (int warp = 0; warp < warps; ++warp) memory.counters[warp * entries + i] += before;
    memory.totals[i] = total;
  }
  __syncthreads();
}

__device__ inline uint32_t warp_sum_of_experts(const uint32_t* by_expert, int rank,
                                               int local_experts) {
  uint32_t sum = 0;
  for (int e = lane_index(); e < local_experts; e += kWarpSize)
    sum += by_expert[rank * local_experts + e];
  return warp_sum(sum);
}

// Each destination's header and counts are sent by one warp of one block.
__device__ inline void send_headers(const RouteArgs& args, const SendMemory& memory,
                                    uint64_t epoch) {
  const KernelContext& context = args.context;
  const int local_experts = context.shape().num_local_experts();
  const int warps = blockDim.x / kWarpSize;
  for (int rank = warp_index() * gridDim.x + blockIdx.x; rank < context.num_ranks();
       rank += warps * gridDim.x) {
    const uint32_t selections = warp_sum_of_experts(memory.totals, rank, local_experts);
    void* window = context.windows[rank];
    if (lane_index() == 0) {
      const RecordHeader header{static_cast<uint32_t>(args.num_tokens),
                                memory.totals[context.shape().num_experts + rank], selections,
                                static_cast<uint32_t>(args.top_k)};
      *at<RecordHeader>(window, context.window_layout.header_at(epoch, context.rank)) = header;
    }
    uint32_t* counts = at<uint32_t>(window, context.window_layout.counts_at(epoch, context.rank));
    for (int e = lane_index(); e < local_experts; e += kWarpSize)
      counts[e] = memory.totals[rank * local_experts + e];
  }
}

// Reads a group of tokens and gives every selection its index among those of its expert, in
// (token, k) order.
template <typename Index>
__device__ void index_selections(const RouteArgs& args, int first_token, int num_selections,
                                 uint32_t* next_index, GroupBuffers& group) {
  for (int base = 0; base < num_selections; base += kWarpSize) {
    const int i = base + lane_index();
    const int expert =
        i < num_selections
            ? expert_at<Index>(args, static_cast<int64_t>(first_token) * args.top_k + i)
            : -1;
    const uint32_t selecting = __ballot_sync(kFullWarp, expert >= 0);
    if (expert >= 0) {
      const uint32_t same = __match_any_sync(selecting, expert);
      const uint32_t next = next_index[expert];
      const int before = __popc(same & lanes_below());
      __syncwarp(selecting);
      if (before == 0) next_index[expert] = next + __popc(same);
      group.index[i] = next + before;
    }
    if (i < num_selections) group.experts[i] = expert >= 0 ? expert : kNoExpert;
    __syncwarp();
  }
}

// Sorts each token's selections by (expert, k); those without an expert fall away.
__device__ inline void sort_selections(const RouteArgs& args, int num_selections,
                                       GroupBuffers& group) {
  for (int i = lane_index(); i < num_selections; i += kWarpSize) {
    const uint16_t expert = group.experts[i];
    if (expert == kNoExpert) continue;
    const int k = i % args.top_k;
    const int first = i - k;
    int rank = 0;
    for (int other = 0; other < args.top_k; ++other) {
      const uint16_t other_expert = group.experts[first + other];
      rank += other_expert < expert || (other_expert == expert && other < k);
    }
    group.sorted[first + rank] = {group.index[i], expert, static_cast<uint16_t>(k)};
  }
  __syncwarp();
}

// Writes the records of a sorted group, lane by token, into the windows of their destinations.
__device__ inline void send_group(const RouteArgs& args, int first_token, int num_tokens,
                                  uint64_t epoch, uint32_t* next_row, uint32_t* next_selection,
                                  GroupBuffers& group) {
  const KernelContext& context = args.context;
  const int local_experts = context.shape().num_local_experts();
  const int lane = lane_index();
  const Selection* sorted = group.sorted + lane * args.top_k;
  int num_sorted = 0;
  for (int k = 0; lane < num_tokens && k < args.top_k; ++k)
    num_sorted += group.experts[lane * args.top_k + k] != kNoExpert;

  int begin = 0;
  uint16_t ordinal = 0;
  for (int rank = 0; rank < context.num_ranks(); ++rank) {
    int end = begin;
    while (end < num_sorted && sorted[end].expert < (rank + 1) * local_experts) ++end;
    const uint32_t count = end - begin;
    const uint32_t receiving = __ballot_sync(kFullWarp, count > 0);
    if (receiving == 0) continue;
    const uint32_t through = warp_inclusive_sum(count);
    const uint32_t total = __shfl_sync(kFullWarp, through, kWarpSize - 1);
    const uint32_t before = through - count;
    void* window = context.windows[rank];

    if (count > 0) {
      const Row row{static_cast<uint32_t>(first_token + lane),
                    next_selection[rank] + before,
                    static_cast<uint16_t>(count),
                    ordinal,
                    static_cast<uint16_t>(context.rank),
                    0};
      Row* rows = at<Row>(window, context.window_layout.rows_at(epoch, context.rank));
      reinterpret_cast<uint4*>(rows)[next_row[rank] + __popc(receiving & lanes_below())] =
          reinterpret_cast<const uint4&>(row);
      ++ordinal;
      for (int i = begin; i < end; ++i) {
        Selection selection = sorted[i];
        selection.expert -= rank * local_experts;
        group.outgoing[before + i - begin] = selection;
      }
    }
    __syncwarp();
    // Neighbouring lanes write neighbouring records: NVLink carries full packets.
    Selection* selections =
        at<Selection>(window, context.window_layout.selections_at(epoch, context.rank)) +
        next_selection[rank];
    for (uint32_t i = lane; i < total; i += kWarpSize)
      reinterpret_cast<uint2*>(selections)[i] = reinterpret_cast<const uint2*>(group.outgoing)[i];
    __syncwarp();
    if (lane == 0) {
      next_row[rank] += __popc(receiving);
      next_selection[rank] += total;
    }
    __syncwarp();
    begin = end;
  }
  if (lane < num_tokens)
    at<uint8_t>(args.routing, context.routing_layout.partial_counts)[first_token + lane] = ordinal;
}

template <typename Index>
__device__ void send_records(const RouteArgs& args, TokenRange range, const SendMemory& memory,
                             uint64_t epoch) {
  const Shape& shape = args.context.shape();
  const int entries = shape.num_experts + shape.num_ranks;
  uint32_t* next_index = memory.counters + warp_index() * entries;
  uint32_t* next_row = next_index + shape.num_experts;
  uint32_t* next_selection = memory.next_selection + warp_index() * shape.num_ranks;
  GroupBuffers& group = memory.groups[warp_index()];

  for (int rank = 0; rank < shape.num_ranks; ++rank) {
    const uint32_t first = warp_sum_of_experts(next_index, rank, shape.num_local_experts());
    if (lane_index() == 0) next_selection[rank] = first;
  }
  __syncwarp();

  const int group_tokens = min(kWarpSize, kGroupSelections / args.top_k);
  for (int token = range.begin; token < range.end; token += group_tokens) {
    const int num_tokens = min(group_tokens, range.end - token);
    index_selections<Index>(args, token, num_tokens * args.top_k, next_index, group);
    sort_selections(args, num_tokens * args.top_k, group);
    send_group(args, token, num_tokens, epoch, next_row, next_selection, group);
    __syncwarp();
  }
}

// Tells the peers that the records are there, once all blocks have written theirs.
__device__ inline void signal_records(const RouteArgs& args, uint64_t epoch) {
  if (!arrive_is_last(&args.context.state->routing_sent)) return;
  ptx::fence_acq_rel_sys();
  for (int rank = threadIdx.x; rank < args.context.num_ranks(); rank += blockDim.x)
    ptx::st_release_sys(&args.context.signals_to(rank)->records_ready, epoch);
}

}  // namespace hep
