// SPDX-License-Identifier: Apache-2.0
// The one bounded wait of the host backend, and the record of the first wait that failed.
#pragma once

#include <hybridep.h>

#include <atomic>
#include <cstdint>
#include <mutex>

#include "status.h"

namespace hep {

// Which wait it is, for the failure record.
struct Awaited {
  hepOperation_t operation;
  uint64_t number;  // the operation's epoch
  hepPhase_t phase;
  int peer;
};

// Thread-safe: one thread waits, any thread may abort or read the failure.
class Waiter {
 public:
  Waiter(int rank, int timeout_ms);

  // Fails once a wait has failed or abort() was called; what an operation asks first.
  Status check() const;

  // Returns when *signal has reached `expected`; fails after the timeout or upon abort().
  Status wait(const uint64_t* signal, uint64_t expected, const Awaited& awaited);

  // Records a failure, unless there is one; returns the sentence of the first.
  Status fail(hepResult_t result, const Awaited& awaited, uint64_t expected, uint64_t seen);

  void abort() { aborted_.store(true); }

  // The first wait that failed; after an abort that ended none, a record without a wait.
  hepFailure_t failure() const;

 private:
  const int timeout_ms_;
  std::atomic<bool> aborted_{false};
  mutable std::mutex mutex_;
  hepFailure_t failure_;  // guarded by mutex_; result is hepSuccess until a wait fails
};

}  // namespace hep
