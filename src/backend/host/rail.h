// SPDX-License-Identifier: Apache-2.0
// A rank's way to the other domains on one lane: what it sends to its rail peers, and what its
// proxy counts. A domain is another one wherever it is an argument here.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "base/thread_annotations.h"
#include "network/descriptor.h"
#include "network/engine.h"
#include "network/ring.h"
#include "protocol/network_layout.h"

namespace hep {

// An operation's thread and the proxy's use it: what is sent is numbered by the ring, and each
// counter has one thread.
class Rail {
 public:
  // `context` is kept by reference.
  Rail(const LaneContext& context, std::function<void()> wake);

  ProxyPlan::LanePlan plan();

  int num_domains() const { return topology_.num_domains(); }
  int own_domain() const { return topology_.domain_of(context_.rank); }
  int peer(int domain) const { return topology_.rank_of(domain, number()); }
  // The i-th other domain to visit. Each begins behind its own, so that ranks do not meet at one.
  int in_turn(int i) const { return (own_domain() + 1 + i) % num_domains(); }
  int num_others() const { return num_domains() - 1; }
  int index_of(int domain) const { return index_of_domain(domain, own_domain()); }
  // The rank of this domain by way of which a rank of another one writes here.
  int via(int rank) const { return topology_.rank_of(own_domain(), topology_.number_of(rank)); }

  // Sends what this rank has written before. `target`: see fill_channels(). post() is for the
  // proxy's thread, send() for any other, and wakes the proxy.
  void post(WriteKind kind, int domain, uint64_t slot, uint64_t target, uint64_t bytes)
      HEP_EXCLUDES(mutex_);
  void send(WriteKind kind, int domain, uint64_t slot, uint64_t target, uint64_t bytes)
      HEP_EXCLUDES(mutex_);

  // Writes that have arrived by way of a rank of this domain, and own ones that are complete.
  const uint64_t& arrived(int via, WriteKind kind, int domain) const;
  const uint64_t& completed(WriteKind kind, int domain) const;

  // Tells rail peers which of their chunks all ranks of this domain have taken. By the proxy's
  // thread. Returns whether there were any.
  bool send_credits();

  // Of operations. By domain: chunks of rows sent, chunks that the relay is to send, chunks of
  // parts taken. By rank of another domain: chunks of rows taken, chunks of sums sent to its relay.
  std::vector<uint64_t> rows_sent, parts_due, parts_taken;
  std::vector<uint64_t> rows_taken, relay_sent;
  // Of the relay: chunks of parts sent, by domain.
  std::vector<uint64_t> parts_sent;

 private:
  int number() const { return topology_.number_of(context_.rank); }
  uint64_t taken_by_all(int domain) const;

  const LaneContext& context_;
  const Topology topology_;
  const std::function<void()> wake_;
  std::vector<PackedDescriptor> ring_;
  Mutex mutex_;
  RingWriter writer_ HEP_GUARDED_BY(mutex_);
  std::vector<uint64_t> credits_sent_;  // by domain
};

}  // namespace hep
