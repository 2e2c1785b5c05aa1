// SPDX-License-Identifier: Apache-2.0
// The receiving half of the routing update: the records of all sources become places.
#pragma once

#include "backend/cuda/kernels/common/bit_cast.cuh"
#include "backend/cuda/kernels/common/report.cuh"
#include "backend/cuda/kernels/common/routing_view.cuh"
#include "backend/cuda/kernels/common/wait.cuh"
#include "backend/cuda/kernels/common/warp.cuh"
#include "protocol/at.h"
#include "protocol/call_summary.h"
#include "protocol/records.h"
#include "protocol/routing_layout.h"
#include "protocol/shape.h"

namespace hep::route {

// Shared memory while receiving, receive_bytes() of it.
struct ReceiveMemory {
  uint32_t* place_base;      // [EL][R] place of the first selection of an expert from a source
  uint32_t* row_base;        // [R + 1]
  uint32_t* selection_base;  // [R + 1]
  uint32_t* source_tokens;   // [R]
  uint32_t* warp_rows;       // [warps] of the experts that a warp places, aligned

  __device__ ReceiveMemory(void* shared, const Shape& shape)
      : place_base(static_cast<uint32_t*>(shared)),
        row_base(place_base + shape.num_experts),
        selection_base(row_base + shape.num_ranks + 1),
        source_tokens(selection_base + shape.num_ranks + 1),
        warp_rows(source_tokens + shape.num_ranks + 1) {}
};

// Waits for all blocks of all ranks, each of which has as many.
__device__ inline bool wait_for_records(const RouteArgs& args, uint64_t epoch) {
  const KernelContext& context = args.context;
  bool here = true;
  for (int i = threadIdx.x; i < context.num_ranks() * gridDim.x; i += blockDim.x) {
    const int rank = i / gridDim.x, block = i % gridDim.x;
    here &= wait_for(
        context, {hepOperationRouting, hepPhaseRecords, rank, epoch},
        at<uint64_t>(context.own_window(), context.window_layout.block_records_at(rank, block)),
        epoch);
  }
  return __syncthreads_and(here);
}

__device__ inline const RecordHeader* header_from(const RouteArgs& args, int source,
                                                  uint64_t epoch) {
  return at<RecordHeader>(args.context.own_window(),
                          args.context.window_layout.header_at(epoch, source));
}

// All threads: the counts of all sources, where assign_experts() expects them.
__device__ inline void load_counts(const RouteArgs& args, const ReceiveMemory& memory,
                                   uint64_t epoch) {
  const KernelContext& context = args.context;
  for (int i = threadIdx.x; i < context.shape().num_experts; i += blockDim.x) {
    const int e = i / context.num_ranks(), source = i % context.num_ranks();
    memory.place_base[i] = __ldcg(
        at<uint32_t>(context.own_window(), context.window_layout.counts_at(epoch, source)) + e);
  }
}

// The local experts that a warp places: consecutive ones, in whole rounds of its lanes.
struct WarpExperts {
  int begin, end;

  __device__ explicit WarpExperts(int local_experts) {
    const int rounds = ceil_div(local_experts, blockDim.x);
    begin = min(warp_index() * rounds * kWarpSize, local_experts);
    end = min(begin + rounds * kWarpSize, local_experts);
  }
};

// Selections of an expert from all sources, of which place_base has the counts.
__device__ inline uint32_t count_selections(const ReceiveMemory& memory, int expert, int ranks) {
  uint32_t count = 0;
  for (int source = 0; source < ranks; ++source)
    count += memory.place_base[expert * ranks + source];
  return count;
}

// All threads: the rows of each warp's experts, where there are more than one warp places.
__device__ inline void count_rows_of_warps(const RouteArgs& args, const ReceiveMemory& memory) {
  const int ranks = args.context.num_ranks();
  const WarpExperts experts(args.context.shape().num_local_experts());
  uint32_t rows = 0;
  for (int e = experts.begin + warp_lane(); e < experts.end; e += kWarpSize)
    rows += align_up(count_selections(memory, e, ranks), args.alignment);
  const uint32_t total = warp_sum(rows);
  if (warp_lane() == 0) memory.warp_rows[warp_index()] = total;
}

// All threads: where each local expert's block begins, and in it the rows of each source.
__device__ inline void assign_experts(const RouteArgs& args, const ReceiveMemory& memory) {
  const int ranks = args.context.num_ranks();
  const int local_experts = args.context.shape().num_local_experts();
  int32_t* tokens_per_expert = routing_of(args).tokens_per_expert();
  int32_t* expert_offsets = routing_of(args).expert_offsets();
  const WarpExperts experts(local_experts);
  if (experts.begin == experts.end) return;
  const bool is_first = warp_index() == 0;  // the only one, unless count_rows_of_warps() was called
  uint32_t end =
      is_first ? 0 : warp_sum(warp_lane() < warp_index() ? memory.warp_rows[warp_lane()] : 0);
  for (int base = experts.begin; base < experts.end; base += kWarpSize) {
    const int e = base + warp_lane();
    const uint32_t count = e < experts.end ? count_selections(memory, e, ranks) : 0;
    const uint32_t aligned = align_up(count, args.alignment);
    const uint32_t through = warp_inclusive_sum(aligned);
    const uint32_t offset = end + through - aligned;
    uint32_t place = offset;
    for (int source = 0; e < experts.end && source < ranks; ++source) {
      const uint32_t from_source = memory.place_base[e * ranks + source];
      memory.place_base[e * ranks + source] = place;
      place += from_source;
    }
    if (e < experts.end && blockIdx.x == 0) {
      tokens_per_expert[e] = count;
      expert_offsets[e] = offset;
    }
    end += __shfl_sync(kFullWarp, through, kWarpSize - 1);
  }
  const bool has_last = experts.end == local_experts;
  if (has_last && blockIdx.x == 0 && warp_lane() == 0) expert_offsets[local_experts] = end;
}

// One warp: where each source's rows and selections begin. Returns whether the batches of all
// sources fit in the routing's memory.
__device__ inline bool assign_sources(const RouteArgs& args, const ReceiveMemory& memory,
                                      uint64_t epoch) {
  const KernelContext& context = args.context;
  uint32_t rows = 0, selections = 0, most = 0;
  bool fit = true;
  for (int base = 0; base < context.num_ranks(); base += kWarpSize) {
    const int source = base + warp_lane();
    uint4 header = make_uint4(0, 0, 0, 0);
    if (source < context.num_ranks())
      header = __ldcg(reinterpret_cast<const uint4*>(header_from(args, source, epoch)));
    const uint32_t num_rows = header.y, num_selections = header.z;
    const uint32_t top_k = header.w & 0xffff;
    most = max(most, header.w >> 16);
    if (source < context.num_ranks() && top_k != args.top_k)
      record_failure(context, {hepOperationRouting, hepPhaseRecords, source, epoch},
                     hepErrorMismatch, args.top_k, top_k);
    const RoutingLayout& layout = context.routing_layout;
    if (header.x > static_cast<uint32_t>(layout.max_tokens)) {
      fit = false;
      record_failure(context, {hepOperationRouting, hepPhaseRecords, source, epoch},
                     hepErrorMismatch, batch_word(layout.max_tokens, layout.max_top_k),
                     batch_word(header.x, top_k));
    }
    const uint32_t rows_through = warp_inclusive_sum(num_rows);
    const uint32_t selections_through = warp_inclusive_sum(num_selections);
    if (source < context.num_ranks()) {
      memory.row_base[source] = rows + rows_through - num_rows;
      memory.selection_base[source] = selections + selections_through - num_selections;
      memory.source_tokens[source] = header.x;
      if (blockIdx.x == 0) routing_of(args).source_tokens()[source] = header.x;
    }
    rows += __shfl_sync(kFullWarp, rows_through, kWarpSize - 1);
    selections += __shfl_sync(kFullWarp, selections_through, kWarpSize - 1);
  }
  if (warp_lane() == 0) {
    memory.row_base[context.num_ranks()] = rows;
    memory.selection_base[context.num_ranks()] = selections;
  }
  fit = __all_sync(kFullWarp, fit);
  __syncwarp();  // a vote does not order memory
  if (blockIdx.x != 0) return fit;
  most = __reduce_max_sync(kFullWarp, most);
  uint32_t* source_rows = routing_of(args).source_rows();
  for (int i = warp_lane(); i <= context.num_ranks(); i += kWarpSize)
    source_rows[i] = memory.row_base[i];
  if (warp_lane() == 0) {
    RoutingTotals* totals = routing_of(args).totals();
    totals->num_flat_rows = rows;
    totals->num_expert_rows = selections;
    totals->max_selections = most;
  }
  return fit;
}

// Records of which a thread has the loads under way at once.
constexpr int kRecordsAtOnce = 2;

// Records of one source become absolute; lanes of all parts take every parts * 32nd.
__device__ inline void receive_rows(const RouteArgs& args, const ReceiveMemory& memory, int source,
                                    int part, int parts, uint64_t epoch) {
  const KernelContext& context = args.context;
  const uint32_t row_base = memory.row_base[source];
  const uint32_t num_rows = memory.row_base[source + 1] - row_base;
  const int num_tokens = memory.source_tokens[source];
  const int num_chunks = hep::num_chunks(num_tokens, context.num_ranks());
  const auto chunk_of = [shift = chunk_shift(num_tokens, context.num_ranks())](uint32_t token) {
    return static_cast<int>(token >> shift);
  };
  const uint32_t first = part * kWarpSize + warp_lane();
  const uint4* incoming =
      at<uint4>(context.own_window(), context.window_layout.rows_at(epoch, source));
  uint4* rows = routing_of(args).row_words() + row_base;
  uint32_t* chunk_rows = routing_of(args).chunk_rows() +
                         static_cast<size_t>(source) * (context.shape().max_chunks() + 1);

  struct Loaded {
    uint4 raw;
    int previous_chunk;
  };
  const auto load = [&](uint32_t i) {
    return Loaded{__ldcg(incoming + i), i == 0 ? -1 : chunk_of(__ldcg(&incoming[i - 1].x))};
  };
  for_each_loaded<kRecordsAtOnce>(first, parts * kWarpSize, num_rows, load,
                                  [&](uint32_t i, Loaded& loaded) {
                                    Row row = bit_cast<Row>(loaded.raw);
                                    row.first += memory.selection_base[source];
                                    rows[i] = bit_cast<uint4>(row);

                                    // The first row of a chunk is where it begins, and where empty
                                    // chunks before it begin, too.
                                    const int chunk = chunk_of(row.token);
                                    for (int c = loaded.previous_chunk + 1; c <= chunk; ++c)
                                      chunk_rows[c] = row_base + i;
                                    if (i == num_rows - 1)
                                      for (int c = chunk + 1; c <= num_chunks; ++c)
                                        chunk_rows[c] = row_base + num_rows;
                                  });
  if (num_rows == 0)
    for (int c = first; c <= num_chunks; c += parts * kWarpSize) chunk_rows[c] = row_base;
}

__device__ inline void receive_selections(const RouteArgs& args, const ReceiveMemory& memory,
                                          int source, int part, int parts, uint64_t epoch) {
  const KernelContext& context = args.context;
  const uint32_t base = memory.selection_base[source];
  const uint32_t count = memory.selection_base[source + 1] - base;
  const uint2* incoming =
      at<uint2>(context.own_window(), context.window_layout.selections_at(epoch, source));
  uint2* selections = routing_of(args).selection_words() + base;
  for_each_loaded<kRecordsAtOnce>(
      part * kWarpSize + warp_lane(), parts * kWarpSize, count,
      [&](uint32_t i) { return __ldcg(incoming + i); },
      [&](uint32_t i, uint2& raw) {
        Selection selection = bit_cast<Selection>(raw);
        selection.place += memory.place_base[selection.expert * context.num_ranks() + source];
        selections[i] = bit_cast<uint2>(selection);
      });
}

__device__ inline void receive_records(const RouteArgs& args, const ReceiveMemory& memory,
                                       uint64_t epoch) {
  load_counts(args, memory, epoch);
  const bool fit = warp_index() != 1 || assign_sources(args, memory, epoch);
  if (!__syncthreads_and(fit)) return;
  if (args.context.shape().num_local_experts() > kWarpSize) {
    count_rows_of_warps(args, memory);
    __syncthreads();
  }
  assign_experts(args, memory);
  __syncthreads();

  const int ranks = args.context.num_ranks();
  const int warps = gridDim.x * (blockDim.x / kWarpSize);
  const int parts = max(warps / ranks, 1);
  for (int task = warp_index() * gridDim.x + blockIdx.x; task < ranks * parts; task += warps) {
    receive_rows(args, memory, task % ranks, task / ranks, parts, epoch);
    receive_selections(args, memory, task % ranks, task / ranks, parts, epoch);
  }
}

}  // namespace hep::route
