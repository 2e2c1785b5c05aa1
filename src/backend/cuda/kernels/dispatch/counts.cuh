// SPDX-License-Identifier: Apache-2.0
// The counters that a dispatch leaves for its caller.
#pragma once

#include "backend/cuda/kernels/common/ptx.cuh"
#include "backend/cuda/kernels/common/routing_view.cuh"
#include "backend/cuda/kernels/common/warp.cuh"
#include "backend/cuda/kernels/dispatch/extras.cuh"
#include "protocol/output_layout.h"
#include "protocol/routing_layout.h"

namespace hep::dispatch {

// The capacity that takes all rows. By one warp.
template <int kLayout>
__device__ int64_t needed_rows(const DispatchArgs& args, const ExpertBlocks& experts,
                               int64_t num_flat_rows) {
  const int local_experts = args.context.shape().num_local_experts();
  if (kLayout == hepLayoutFlat) return num_flat_rows;
  if (kLayout == hepLayoutExpertMajor) return experts.offsets[local_experts];
  uint32_t most = 0;
  for (int e = warp_lane(); e < local_experts; e += kWarpSize)
    most = max(most, static_cast<uint32_t>(experts.counts[e]));
  return __reduce_max_sync(kFullWarp, most);
}

// The first is kept.
__device__ inline void report_overflow(const DispatchArgs& args, uint64_t epoch, int64_t needed) {
  if (ptx::atomic_cas_relaxed_gpu(&args.context.firsts->overflow, 0, 1) != 0) return;
  HostState* host = args.context.host;
  host->overflow_mode = args.context.mode;
  host->overflow_lane = args.context.lane;
  host->overflow_number = epoch;
  host->overflow_needed = needed;
  host->overflow_capacity = args.call.capacity;
  ptx::st_release_sys(&host->overflow_ready, 1);
}

// Rows of each expert, and of its block, that were written. A lane has an expert.
template <int kLayout>
__device__ void write_expert_counts(const DispatchArgs& args, const ExpertBlocks& experts) {
  const DispatchCall& call = args.call;
  for (int e = warp_lane(); e < args.context.shape().num_local_experts(); e += kWarpSize) {
    const int32_t offset = experts.offsets[e];
    if (call.expert_rows != nullptr)
      call.expert_rows[e] = static_cast<int32_t>(
          rows_below_capacity(kLayout, call.capacity, offset, experts.counts[e]));
    if (kLayout == hepLayoutExpertMajor && call.group_sizes != nullptr)
      call.group_sizes[e] =
          rows_below_capacity(kLayout, call.capacity, offset, experts.offsets[e + 1] - offset);
  }
}

// By one warp.
template <int kLayout>
__device__ void write_counts(const DispatchArgs& args, const ExpertBlocks& experts,
                             int64_t num_flat_rows, uint64_t epoch) {
  if (kLayout != hepLayoutFlat) write_expert_counts<kLayout>(args, experts);
  const int64_t needed = needed_rows<kLayout>(args, experts, num_flat_rows);
  if (warp_lane() != 0) return;
  const hepRowCounters_t counters{needed, min(needed, args.call.capacity),
                                  needed > args.call.capacity};
  routing_of(args).totals()->row_counters = counters;
  if (args.call.row_counters != nullptr) *args.call.row_counters = counters;
  if (needed > args.call.capacity && args.call.overflow == hepOverflowError)
    report_overflow(args, epoch, needed);
}

}  // namespace hep::dispatch
