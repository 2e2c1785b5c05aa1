// SPDX-License-Identifier: Apache-2.0
// The update of a routing that the device has executed, beside the one that a call was made for.
#pragma once

#include "backend/cuda/kernels/common/report.cuh"
#include "backend/cuda/kernels/common/routing_view.cuh"
#include "protocol/at.h"
#include "protocol/call_summary.h"
#include "protocol/routing_layout.h"

namespace hep {

template <typename Args>
__device__ const RoutingTotals& executed_update(const Args& args) {
  return *routing_of(args).totals();
}

// Makes `update` the one that was executed. By one thread.
template <typename Args>
__device__ void note_update(const Args& args, uint64_t update) {
  RoutingTotals* totals = routing_of(args).totals();
  totals->update = update;
  totals->num_tokens = args.num_tokens;
  totals->top_k = args.top_k;
  totals->routing = args.routing_number;
}

// Whether an operation on a routing may begin: the communicator has not failed, an update of the
// routing was executed, and T and K of the call are those of the update. The replay of a graph may
// have executed another update than the host called last; the communicator fails then, before
// anything is read by the routing's records. By all threads of a block.
template <typename Args>
__device__ bool may_begin(const Args& args, hepOperation_t operation, uint64_t epoch) {
  const RoutingTotals& executed = executed_update(args);
  const int num_tokens = executed.num_tokens, top_k = executed.top_k;
  const bool failed = has_failed(args.context);
  const bool own = executed.routing == args.routing_number;
  const bool fits = own && num_tokens == args.num_tokens && top_k == args.top_k;
  if (!__syncthreads_or(failed || !fits)) return true;
  if (!failed && !fits && threadIdx.x == 0)
    record_failure(args.context, {operation, hepPhaseNone, args.context.rank, epoch},
                   hepErrorInvalidUsage, batch_word(args.num_tokens, args.top_k),
                   own ? batch_word(num_tokens, top_k) : 0);
  return false;
}

}  // namespace hep
