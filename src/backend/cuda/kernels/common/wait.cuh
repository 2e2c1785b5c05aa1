// SPDX-License-Identifier: Apache-2.0
// Waits for other ranks and for other blocks. Every wait that depends on anything but the same
// block is made here, and is bounded.
#pragma once

#include "backend/cuda/kernel_args.h"
#include "backend/cuda/kernels/common/ptx.cuh"
#include "backend/cuda/kernels/common/report.cuh"
#include "backend/cuda/profile.h"

namespace hep {

constexpr unsigned kPollPauseNs = kCompiledProfile.poll_pause_ns;
constexpr int kPollsPerLookAround = kCompiledProfile.polls_per_look;

// Why a wait has to end without its signal; hepSuccess if it need not.
__device__ inline hepResult_t reason_to_end(const HostState& host, int peer) {
  if (ptx::ld_acquire_sys(&host.interrupt) == 0) return hepSuccess;
  const uint32_t result = ptx::ld_relaxed_sys(&host.stop_result);
  if (result != hepSuccess) return static_cast<hepResult_t>(result);
  return ptx::ld_relaxed_sys(&host.peer_left[peer]) != 0 ? hepErrorPeerLost : hepSuccess;
}

// What a wait sees when it looks.
struct Poll {
  uint64_t seen;
  bool done;
};

// Waits until look() says that it is done. False once the communicator has failed or was stopped,
// the peer has left, or the time is up: the caller then drains its block. `expected` is for the
// record.
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

}  // namespace hep
