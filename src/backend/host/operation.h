// SPDX-License-Identifier: Apache-2.0
// One running operation of the host backend: its epoch, the ranks' windows, and its waits.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <new>

#include "backend/backend.h"
#include "backend/host/wait.h"
#include "base/status.h"
#include "protocol/at.h"
#include "protocol/call_summary.h"
#include "protocol/shape.h"
#include "protocol/signals.h"
#include "protocol/window_layout.h"

namespace hep {

class Operation {
 public:
  Operation(const LaneContext& context, Waiter& waiter, hepOperation_t kind, uint64_t epoch)
      : context_(context), waiter_(waiter), kind_(kind), epoch_(epoch) {}

  uint64_t epoch() const { return epoch_; }
  int rank() const { return context_.rank; }
  int num_ranks() const { return context_.lane.shape.num_ranks; }
  const Shape& shape() const { return context_.lane.shape; }
  const WindowLayout& layout() const { return context_.lane.window_layout; }
  // The i-th rank to visit. Each begins with itself, so that ranks do not meet at one.
  int in_turn(int i) const { return (rank() + i) % num_ranks(); }
  void* window(int rank) const { return context_.windows[rank]; }
  void* own_window() const { return window(rank()); }

  // What a peer tells this rank, and what this rank tells a peer.
  const Signals& from(int peer) const {
    return *at<Signals>(own_window(), layout().signals_at(peer));
  }
  Signals& to(int peer) const { return *at<Signals>(window(peer), layout().signals_at(rank())); }

  // Waits until `peer` has brought its signal to `expected`.
  Status wait(hepPhase_t phase, int peer, const uint64_t& signal, uint64_t expected) const {
    return waiter_.wait(&signal, expected, awaited(phase, peer));
  }

  // Fails the communicator if a peer has not called as this rank has.
  Status compare_calls(hepPhase_t phase, int peer, uint64_t own, uint64_t theirs) const {
    return alike(own, theirs) ? Status() : fail(hepErrorMismatch, phase, peer, own, theirs);
  }

  // Does what follows the start. The peers take part by now, and the call cannot be made again, so
  // that memory that runs out fails the communicator.
  template <typename Body>
  Status run(Body body) const {
    try {
      return body();
    } catch (const std::bad_alloc&) {
      return fail(hepErrorOutOfMemory, hepPhaseNone, rank(), 0, 0);
    }
  }

  // Fails the communicator for something other than a wait.
  Status fail(hepResult_t result, hepPhase_t phase, int peer, uint64_t expected,
              uint64_t seen) const {
    return waiter_.fail(result, awaited(phase, peer), expected, seen);
  }

 private:
  Awaited awaited(hepPhase_t phase, int peer) const {
    return {kind_, epoch_, context_.lane.mode, context_.lane.number, phase, peer};
  }

  const LaneContext& context_;
  Waiter& waiter_;
  const hepOperation_t kind_;
  const uint64_t epoch_;
};

}  // namespace hep
