// SPDX-License-Identifier: Apache-2.0
// The counters that a dispatch leaves for its caller.
#pragma once

#include "backend/cuda/kernels/common/ptx.cuh"
#include "backend/cuda/kernels/common/routing_view.cuh"
#include "backend/cuda/kernels/common/warp.cuh"
#include "backend/cuda/kernels/dispatch/extras.cuh"
#include "protocol/at.h"
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

// By one warp.
template <int kLayout>
__device__ void write_counts(const DispatchArgs& args, const ExpertBlocks& experts,
                             int64_t num_flat_rows, uint64_t epoch) {
  if (args.call.expert_rows != nullptr)
    for (int e = warp_lane(); e < args.context.shape().num_local_experts(); e += kWarpSize)
      args.call.expert_rows[e] =
          static_cast<int32_t>(min(static_cast<int64_t>(experts.counts[e]), args.call.capacity));
  const int64_t needed = needed_rows<kLayout>(args, experts, num_flat_rows);
  if (warp_lane() != 0) return;
  hepRowCounters_t& counters = routing_of(args).totals()->row_counters;
  counters.needed = needed;
  counters.written = min(needed, args.call.capacity);
  counters.overflow = needed > args.call.capacity;
  if (needed > args.call.capacity && args.call.overflow == hepOverflowError)
    report_overflow(args, epoch, needed);
}

}  // namespace hep::dispatch
