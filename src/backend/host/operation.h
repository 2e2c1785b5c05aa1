// SPDX-License-Identifier: Apache-2.0
// One running operation of the host backend: its epoch, the ranks' windows, and its waits.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <new>

#include "backend/backend.h"
#include "backend/host/rail.h"
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
  // `rail` is NULL with one domain.
  Operation(const LaneContext& context, Waiter& waiter, Rail* rail, hepOperation_t kind,
            uint64_t epoch)
      : context_(context), waiter_(waiter), rail_(rail), kind_(kind), epoch_(epoch) {}

  uint64_t epoch() const { return epoch_; }
  int rank() const { return context_.rank; }
  int num_ranks() const { return context_.lane.shape.num_ranks; }
  const Shape& shape() const { return context_.lane.shape; }
  const WindowLayout& layout() const { return context_.lane.window_layout; }
  const NetworkLayout& network() const { return context_.lane.network_layout; }
  Rail* rail() const { return rail_; }

  const Topology& topology() const { return context_.lane.topology(); }
  int domain() const { return topology().domain_of(rank()); }
  int domain_size() const { return topology().domain_size; }
  int number_of(int rank) const { return topology().number_of(rank); }
  bool is_local(int rank) const { return topology().share_domain(rank, this->rank()); }
  // The ranks of this domain are `first_local()` and those that follow.
  int first_local() const { return topology().rank_of(domain(), 0); }
  int end_local() const { return first_local() + domain_size(); }
  // The i-th rank of this domain to visit. Each begins with itself, so that ranks do not meet at
  // one.
  int in_turn(int i) const {
    return topology().rank_of(domain(), (number_of(rank()) + i) % domain_size());
  }
  // The same of the ranks of other domains, of which there are `num_remote()`.
  int remote_in_turn(int i) const {
    const int other = (domain() + 1 + i / domain_size()) % topology().num_domains();
    return topology().rank_of(other, (number_of(rank()) + i) % domain_size());
  }
  int num_remote() const { return num_ranks() - domain_size(); }

  // The ranks of a domain alone map each other's windows.
  void* window(int rank) const { return context_.windows[rank]; }
  void* own_window() const { return window(rank()); }

  // What a peer of this domain tells this rank, and what this rank tells it.
  const Signals& from(int peer) const {
    return *at<Signals>(own_window(), layout().signals_at(number_of(peer)));
  }
  Signals& to(int peer) const {
    return *at<Signals>(window(peer), layout().signals_at(number_of(rank())));
  }

  // Waits until `peer` has brought its signal to `expected`.
  Status wait(hepPhase_t phase, int peer, const uint64_t& signal, uint64_t expected) const {
    return waiter_.wait(&signal, expected, awaited(phase, peer));
  }

  // Waits until a rank of this domain has counted as many writes of a rank of another one.
  Status wait_by_way(int via, hepPhase_t phase, int peer, const uint64_t& signal,
                     uint64_t expected) const {
    Awaited by_way = awaited(phase, peer);
    by_way.via = via;
    return waiter_.wait(&signal, expected, by_way);
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

  // Ends the waits of this rank because of a failure that has been recorded by another thread.
  void end_waits(hepResult_t result) const { waiter_.stop(result); }

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
  Rail* rail_;
  const hepOperation_t kind_;
  const uint64_t epoch_;
};

}  // namespace hep
