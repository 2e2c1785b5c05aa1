// SPDX-License-Identifier: Apache-2.0
// What the ranks of a combine tell each other beforehand: what they call, which must be the same,
// and where outputs lie that the peers can read in place.
#pragma once

#include "backend/cuda/kernels/combine/contribution.cuh"
#include "backend/cuda/kernels/common/executed_update.cuh"
#include "backend/cuda/kernels/common/published.cuh"
#include "backend/cuda/kernels/common/report.cuh"
#include "backend/cuda/kernels/common/routing_view.cuh"
#include "backend/cuda/kernels/common/wait.cuh"
#include "protocol/at.h"
#include "protocol/location.h"
#include "protocol/routing_layout.h"
#include "protocol/signals.h"

namespace hep::combine {

// This rank's outputs for the tokens of another.
struct OutputRange {
  int64_t first, count;  // rows of y
};

__device__ inline OutputRange outputs_for(const CombineArgs& args, int rank) {
  const uint32_t* source_rows = routing_of(args).source_rows();
  const int64_t first = source_rows[rank], end = source_rows[rank + 1];
  return {first, max(min(end, args.call.capacity) - first, int64_t{0})};
}

// Whether the peers read this rank's outputs where they lie.
__device__ inline bool outputs_in_place(const CombineArgs& args) {
  if (args.outputs.location == kNotInWindow) return false;
  if (never_sends_outputs(args)) return true;
  const KernelContext& context = args.context;
  return routing_of(args).source_rows()[context.num_ranks()] > args.outputs.most_sent_rows;
}

__device__ inline uint64_t call_summary(const CombineArgs& args) {
  const RoutingTotals& executed = executed_update(args);
  return summary_of(args.call, args.num_tokens, executed.num_flat_rows, executed.update);
}

// Tells each peer of the call and where its rows lie. A peer that has told of the combine before
// this one has done with the one before that, whose set this is. By one block.
__device__ inline void publish_outputs(const CombineArgs& args, bool in_place, uint64_t epoch) {
  const KernelContext& context = args.context;
  const uint64_t call = call_summary(args);
  for (int rank = threadIdx.x; rank < context.num_ranks(); rank += blockDim.x) {
    if (rank == context.rank) continue;
    const OutputRange range = outputs_for(args, rank);
    const uint64_t location =
        in_place ? args.outputs.location + range.first * args.row_bytes : kNotInWindow;
    OutputsSignal& signal = context.signals_to(rank)->outputs_of(epoch);
    ptx::st_relaxed_sys(&signal.call, call);
    ptx::st_relaxed_sys(&signal.location, location);
    ptx::st_relaxed_sys(&signal.num_rows, range.count);
    ptx::st_release_sys(&signal.ready, epoch);
  }
}

// Whether a peer's call is this rank's, too, when it has told.
__device__ inline bool calls_alike(const CombineArgs& args, uint64_t epoch, int rank) {
  const KernelContext& context = args.context;
  const OutputsSignal& signal = context.signals_from(rank)->outputs_of(epoch);
  const WaitPoint point{hepOperationCombine, hepPhasePartials, rank, epoch};
  return wait_for(context, point, &signal.ready, epoch) &&
         agrees(context, point, &signal.call, call_summary(args));
}

// Whether all peers' are. By one warp, before this rank lets the peers go on to the next operation.
__device__ inline bool all_calls_alike(const CombineArgs& args, uint64_t epoch) {
  bool alike = true;
  for (int rank = warp_lane(); rank < args.context.num_ranks(); rank += kWarpSize)
    alike &= rank == args.context.rank || calls_alike(args, epoch, rank);
  return __all_sync(kFullWarp, alike);
}

// What a peer has published.
__device__ inline bool find_outputs(const CombineArgs& args, uint64_t epoch, uint64_t call,
                                    int rank, Outputs* outputs) {
  const KernelContext& context = args.context;
  const OutputsSignal& signal = context.signals_from(rank)->outputs_of(epoch);
  const WaitPoint point{hepOperationCombine, hepPhasePartials, rank, epoch};
  if (!wait_for(context, point, &signal.ready, epoch)) return false;
  // Asked for with what agrees() looks at.
  const uint64_t location = ptx::ld_relaxed_sys(&signal.location);
  const uint64_t num_rows = ptx::ld_relaxed_sys(&signal.num_rows);
  if (!agrees(context, point, &signal.call, call)) return false;
  const bool in_place = location != kNotInWindow;
  *outputs = {in_place ? published_at(context, rank, location) : nullptr,
              static_cast<uint32_t>(num_rows), in_place};
  return true;
}

// Of all ranks, this one's wherever they lie. By one warp.
__device__ inline bool find_all_outputs(const CombineArgs& args, uint64_t epoch, Outputs* outputs) {
  const KernelContext& context = args.context;
  const uint64_t call = call_summary(args);
  bool found = true;
  for (int rank = warp_lane(); rank < context.num_ranks(); rank += kWarpSize) {
    if (rank != context.rank) {
      found &= find_outputs(args, epoch, call, rank, &outputs[rank]);
      continue;
    }
    const OutputRange range = outputs_for(args, rank);
    outputs[rank] = {static_cast<const char*>(args.call.y) + range.first * args.row_bytes,
                     static_cast<uint32_t>(range.count), true};
  }
  if (!__all_sync(kFullWarp, found)) return false;
  __syncwarp();  // a vote does not order memory
  // The copy engine reads what the peers wrote by other means.
  ptx::fence_proxy_async();
  return true;
}

}  // namespace hep::combine
