// SPDX-License-Identifier: Apache-2.0
// The proxy of a rank: a thread that makes the writes which the backend asks for, and counts those that
// arrive and complete. It knows nothing of operations.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "base/thread_annotations.h"
#include "network/descriptor.h"
#include "network/transport.h"

namespace hep {

// What the backend hands over. The memory outlives the proxy; it is zero at first.
struct ProxyPlan {
  struct LanePlan {
    PackedDescriptor* ring;
    uint32_t ring_slots;  // a power of two, at most kMaxRingSlots
    Channel channels[kWriteKinds];
  };

  int rank, domain, num_domains;
  std::vector<int> rail;        // [domains] the rank of each domain that this rank writes to
  std::vector<LanePlan> lanes;  // at most kMaxNetworkLanes
  Inbox* inboxes;               // [lanes][domains]
};

// Hears from the proxy's thread, at most once.
class ProxyListener {
 public:
  virtual ~ProxyListener() = default;

  // The network has failed: to `rank`, or on this rank alone if that is -1. The proxy makes no more
  // writes, but counts what still arrives.
  virtual void network_failed(int rank, const std::string& cause) = 0;
};

class Proxy {
 public:
  // Numbers that tests and benchmarks look at.
  struct Counts {
    uint64_t writes, bytes, busy, arrivals;
  };

  // Write number n of a stream goes over transport n mod count. `poll_us` bounds the sleep of a proxy
  // that has had nothing to do. Neither the transports nor the listener may go before the proxy.
  Proxy(std::vector<Transport*> transports, ProxyPlan plan, ProxyListener& listener, int poll_us);

  // Stops the thread. Waits for no peer: writes under way are given up.
  ~Proxy();

  Status start();

  // Takes note that the rank of a domain is gone: errors of writes to it do not count any more. Any thread.
  void peer_gone(int domain) HEP_EXCLUDES(mutex_);

  // Returns when all that had arrived before the call has been counted: what a peer wrote before it went
  // counts. Bounded by a second, in case the proxy hangs. Any thread but the proxy's.
  void settle() HEP_EXCLUDES(mutex_);

  // From now on descriptors are dropped. Any thread.
  void abort();

  // Wakes a proxy that sleeps, because work is about to come. Any thread.
  void wake() HEP_EXCLUDES(mutex_);

  Counts counts() const;

 private:
  mutable Mutex mutex_;
};

}  // namespace hep
