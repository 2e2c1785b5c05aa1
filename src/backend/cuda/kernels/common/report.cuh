// SPDX-License-Identifier: Apache-2.0
// What kernels tell the host of failures. The first of each kind is kept.
#pragma once

#include "backend/cuda/kernel_args.h"
#include "backend/cuda/kernels/common/ptx.cuh"
#include "protocol/call_summary.h"

namespace hep {

// What a wait is part of, for the failure record.
struct WaitPoint {
  hepOperation_t operation;
  hepPhase_t phase;
  int peer;
  uint64_t number;  // of the operation
};

__device__ inline bool has_failed(const KernelContext& context) {
  return ptx::ld_relaxed_sys(&context.firsts->failed) != 0;
}

// The first failure of this rank is kept; the host sees the record when it is complete.
__device__ inline void record_failure(const KernelContext& context, const WaitPoint& point,
                                      hepResult_t result, uint64_t expected, uint64_t seen) {
  if (ptx::atomic_cas_relaxed_gpu(&context.firsts->failed, 0, 1) != 0) return;
  hepFailure_t* failure = &context.host->failure;
  failure->result = result;
  failure->operation = point.operation;
  failure->phase = point.phase;
  failure->rank = context.rank;
  failure->missing_rank = point.peer;
  failure->number = point.number;
  failure->expected = expected;
  failure->seen = seen;
  failure->mode = context.mode;
  failure->lane = context.lane;
  ptx::st_release_sys(&context.host->failure_ready, 1);
}

// Whether a peer has called as this rank has, by their summaries. If not, the communicator fails.
__device__ inline bool agrees(const KernelContext& context, const WaitPoint& point,
                              const uint64_t* theirs, uint64_t own) {
  const uint64_t seen = ptx::ld_relaxed_sys(theirs);
  if (alike(seen, own)) return true;
  record_failure(context, point, hepErrorMismatch, own, seen);
  return false;
}

// The first is kept.
__device__ inline void record_bad_index(FirstErrors* firsts, HostState* host, int64_t token,
                                        int64_t k, int64_t value) {
  if (ptx::atomic_cas_relaxed_gpu(&firsts->bad_index, 0, 1) != 0) return;
  host->bad_index_token = token;
  host->bad_index_k = k;
  host->bad_index_value = value;
  ptx::st_release_sys(&host->bad_index_ready, 1);
}

}  // namespace hep
