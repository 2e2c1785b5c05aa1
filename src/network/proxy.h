// SPDX-License-Identifier: Apache-2.0
// The proxy of a rank: a thread that makes the writes which the backend asks for, and counts those
// that arrive and complete. It knows nothing of operations.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/status.h"
#include "base/thread_annotations.h"
#include "network/engine.h"

namespace hep {

class Proxy {
 public:
  // `poll_us` bounds the sleep of a proxy that has had nothing to do. Neither the transports nor
  // the listener may go before the proxy.
  Proxy(std::vector<Transport*> transports, ProxyPlan plan, ProxyListener& listener, int poll_us);

  // Stops the thread. Waits for no peer: writes under way are given up.
  ~Proxy();

  Status start();

  // The rank of a domain is gone: writes to it count as completed, those under way and those to
  // come, and their errors do not count. Any thread.
  void peer_gone(int domain) HEP_EXCLUDES(mutex_);

  // Returns when all that had arrived before the call has been counted: what a peer wrote before it
  // went counts. Returns without that after a second, in case the proxy hangs. Any thread but the
  // proxy's.
  void settle() HEP_EXCLUDES(mutex_);

  // From now on descriptors are dropped. Any thread.
  void abort() HEP_EXCLUDES(mutex_);

  // Wakes a proxy that sleeps, because work is about to come. Any thread.
  void wake() HEP_EXCLUDES(mutex_);

  const ProxyEngine::Counts& counts() const { return engine_.counts(); }

 private:
  // What other threads want of the proxy's.
  struct Requests {
    std::vector<int> gone;  // domains
    bool abort = false, stop = false;
    uint64_t settle = 0;  // number of the latest
  };

  void run() noexcept;
  void work() HEP_EXCLUDES(mutex_);
  bool take_requests() HEP_EXCLUDES(mutex_);
  void sleep(std::chrono::microseconds longest) HEP_EXCLUDES(mutex_);
  template <typename Change>
  void request(Change change) HEP_EXCLUDES(mutex_);

  ProxyEngine engine_;
  const int rank_, poll_us_;
  std::thread thread_;

  std::atomic<bool> has_requests_{false};
  std::atomic<bool> asleep_{false}, woken_{false};
  mutable Mutex mutex_;
  std::condition_variable changed_;
  Requests requests_ HEP_GUARDED_BY(mutex_);
  uint64_t settled_ HEP_GUARDED_BY(mutex_) = 0;  // number of the latest settle() that is done
  bool ended_ HEP_GUARDED_BY(mutex_) = true;     // nobody settles any more
};

}  // namespace hep
