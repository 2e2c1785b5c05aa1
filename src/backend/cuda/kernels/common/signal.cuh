// SPDX-License-Identifier: Apache-2.0
// Signals between ranks and between the blocks of a kernel. Every wait that depends on anything but
// the same block is made here, and is bounded.
#pragma once

#include "backend/cuda/kernel_args.h"
#include "backend/cuda/kernels/common/ptx.cuh"
#include "backend/cuda/profile.h"
#include "protocol/call_summary.h"

namespace hep {

// What a wait is part of, for the failure record.
struct WaitPoint {
  hepOperation_t operation;
  hepPhase_t phase;
  int peer;
  uint64_t number;  // of the operation
};

constexpr unsigned kPollPauseNs = kCompiledProfile.poll_pause_ns;
constexpr int kPollsPerLookAround = kCompiledProfile.polls_per_look;

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
__device__ inline void record_bad_index(Firsts* firsts, HostState* host, int64_t token, int64_t k,
                                        int64_t value) {
  if (ptx::atomic_cas_relaxed_gpu(&firsts->bad_index, 0, 1) != 0) return;
  host->bad_index_token = token;
  host->bad_index_k = k;
  host->bad_index_value = value;
  ptx::st_release_sys(&host->bad_index_ready, 1);
}

// Why a wait has to end without its signal; hepSuccess if it need not.
__device__ inline hepResult_t reason_to_end(const HostState& host, int peer) {
  if (ptx::ld_acquire_sys(&host.news) == 0) return hepSuccess;
  const uint32_t result = ptx::ld_relaxed_sys(&host.stop_result);
  if (result != hepSuccess) return static_cast<hepResult_t>(result);
  return ptx::ld_relaxed_sys(&host.peer_left[peer]) != 0 ? hepErrorPeerLost : hepSuccess;
}

// What a wait sees when it looks.
struct Poll {
  uint64_t seen;
  bool done;
};

// Waits until look() says that it is done. False once the communicator has failed or was stopped, the
// peer has left, or the time is up: the caller then drains its block. `expected` is for the record.
template <typename Look>
__device__ bool wait_until(const KernelContext& context, const WaitPoint& point, uint64_t expected,
                           Look look) {
  if (look().done) return true;
  const uint64_t begin = ptx::globaltimer_ns();
  while (true) {
#pragma unroll 1  // or each wait takes some 2 KiB of code
    for (int poll = 0; poll < kPollsPerLookAround; ++poll) {
      __nanosleep(kPollPauseNs);
      if (look().done) return true;
    }
    if (has_failed(context)) return false;
    if (const hepResult_t reason = reason_to_end(*context.host, point.peer)) {
      const Poll last = look();  // what a peer signalled before it went counts
      if (last.done) return true;
      record_failure(context, point, reason, expected, last.seen);
      return false;
    }
    if (ptx::globaltimer_ns() - begin > context.timeout_ns) {
      record_failure(context, point, hepErrorTimeout, expected, look().seen);
      return false;
    }
  }
}

// Waits until *signal has reached `expected`; what was written before the signal is then visible to
// this thread. A fast peer may already have signalled its next operation. False as wait_until().
__device__ inline bool wait_for(const KernelContext& context, const WaitPoint& point,
                                const uint64_t* signal, uint64_t expected) {
  return wait_until(context, point, expected, [&] {
    const uint64_t seen = ptx::ld_acquire_sys(signal);
    return Poll{seen, seen >= expected};
  });
}

// Waits until all blocks of the grid have come here; each then sees what all wrote before. By all threads;
// false as wait_until(). `arrivals` is only ever counted up, by grids of one size.
__device__ inline bool wait_for_grid(const KernelContext& context, const WaitPoint& point,
                                     uint64_t* arrivals) {
  bool all_here = true;
  __syncthreads();
  if (threadIdx.x == 0) {
    const uint64_t before = ptx::atomic_add_acq_rel_gpu(arrivals, 1);
    all_here = wait_for(context, point, arrivals, (before / gridDim.x + 1) * gridDim.x);
  }
  return __syncthreads_and(all_here);
}

// By one thread of each block of a kernel, when all of the block have read the epochs: whether it is the last
// to come, which may advance them. `begun` is 0 between kernels.
__device__ inline bool begins_last(uint64_t* begun) {
  if (ptx::atomic_add_acq_rel_gpu(begun, 1) + 1 != gridDim.x) return false;
  *begun = 0;
  return true;
}

// Called by the threads of a block that `sync` brings together, when what they have to make known is
// written. Returns to all of them whether this block is the last of the grid to arrive; the last sees what
// all blocks wrote. `arrivals` is 0 between kernels, whose grids differ.
template <typename Sync>
__device__ bool arrive_is_last(uint64_t* arrivals, bool leads, Sync sync) {
  __shared__ bool last;
  sync();
  if (leads) {
    last = ptx::atomic_add_acq_rel_gpu(arrivals, 1) + 1 == gridDim.x;
    if (last) *arrivals = 0;
  }
  sync();
  return last;
}

// By all threads.
__device__ inline bool arrive_is_last(uint64_t* arrivals) {
  return arrive_is_last(arrivals, threadIdx.x == 0, [] { __syncthreads(); });
}

}  // namespace hep
