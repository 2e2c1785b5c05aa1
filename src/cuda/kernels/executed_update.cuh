// SPDX-License-Identifier: Apache-2.0
// The update of a routing that the device has executed, beside the one that a call was made for.
#pragma once

#include "call_summary.h"
#include "cuda/kernels/signal.cuh"

namespace hep {

template <typename Args>
__device__ const RoutingTotals& executed_update(const Args& args) {
  return *at<RoutingTotals>(args.routing, args.context.routing_layout.totals);
}

// Makes `update` the one that was executed. By one thread.
template <typename Args>
__device__ void note_update(const Args& args, uint64_t update) {
  RoutingTotals* totals = at<RoutingTotals>(args.routing, args.context.routing_layout.totals);
  totals->update = update;
  totals->num_tokens = args.num_tokens;
  totals->top_k = args.top_k;
}

// Whether T and K of the call are those of the routing. The replay of a graph may have executed another
// update than the host called last; the communicator fails then. By all threads of a block, before anything
// is read by the routing's records: those of other sizes lie elsewhere.
template <typename Args>
__device__ bool is_for_executed_update(const Args& args, hepOperation_t operation, uint64_t epoch) {
  const RoutingTotals& executed = executed_update(args);
  if (executed.num_tokens == args.num_tokens && executed.top_k == args.top_k) return true;
  if (threadIdx.x == 0)
    record_failure(args.context, {operation, hepPhaseNone, -1, epoch}, hepErrorInvalidUsage,
                   batch_word(args.num_tokens, args.top_k),
                   batch_word(executed.num_tokens, executed.top_k));
  return false;
}

}  // namespace hep
