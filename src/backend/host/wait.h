// SPDX-License-Identifier: Apache-2.0
// The one bounded wait of the host backend, and the record of the first wait that failed.
#pragma once

#include <hybridep.h>

#include <array>
#include <atomic>
#include <cstdint>

#include "base/status.h"
#include "base/thread_annotations.h"
#include "protocol/shape.h"

namespace hep {

// Which wait it is, for the failure record.
struct Awaited {
  hepOperation_t operation;
  uint64_t number;  // the operation's epoch
  hepMode_t mode;
  int32_t lane;
  hepPhase_t phase;
  int peer;
  int via = -1;  // the rank by way of which the signal of a rank of another domain comes
};

// Thread-safe: a thread a lane waits, any thread may stop them or read the failure.
class Waiter {
 public:
  Waiter(int rank, int timeout_ms);

  // Fails once a wait has failed or stop() was called; what an operation asks first.
  Status check() const;

  // Returns when *signal has reached `expected`; fails after the timeout, upon stop(), when the
  // peer has left.
  //
  // If the peer is of another domain, a rank of this one counts what comes of it. That rank, which
  // waits for the same, knows alone whether all has been counted when the peer has left: others are
  // told by it.
  Status wait(const uint64_t* signal, uint64_t expected, const Awaited& awaited);

  // Records a failure, unless there is one; returns the sentence of the first.
  Status fail(hepResult_t result, const Awaited& awaited, uint64_t expected, uint64_t seen);

  // As those of Backend.
  void stop(hepResult_t result) noexcept;
  void peer_left(int peer) noexcept;
  hepFailure_t failure() const;

 private:
  hepResult_t reason_to_end(const Awaited& awaited) const;

  const int rank_;

  const int timeout_ms_;
  std::atomic<bool> interrupt_{false};  // whether waits have to look at what follows
  mutable Mutex mutex_;
  std::array<bool, kMaxRanks> left_ HEP_GUARDED_BY(mutex_){};
  hepResult_t stop_result_ HEP_GUARDED_BY(mutex_) = hepSuccess;
  hepFailure_t failure_ HEP_GUARDED_BY(mutex_);  // result is hepSuccess until a wait fails
};

}  // namespace hep
