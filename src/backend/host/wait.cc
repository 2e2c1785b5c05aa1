// SPDX-License-Identifier: Apache-2.0
#include "backend/host/wait.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "backend/host/signal.h"
#include "base/deadline.h"
#include "protocol/failure.h"

namespace hep {
namespace {

// A peer that runs answers within the spins; one that wants this core, within the yields. After
// that many ranks share few cores, and a waiting thread must leave them to the working ones.
constexpr int kSpins = 100;
constexpr int kYields = 100;
constexpr std::chrono::microseconds kShortestSleep{20};
constexpr std::chrono::microseconds kLongestSleep{1000};

class Backoff {
 public:
  void pause() {
    if (yields_ < kYields) {
      ++yields_;
      sched_yield();
      return;
    }
    std::this_thread::sleep_for(sleep_);
    sleep_ = std::min(2 * sleep_, kLongestSleep);
  }

 private:
  int yields_ = 0;
  std::chrono::microseconds sleep_ = kShortestSleep;
};

}  // namespace

Waiter::Waiter(int rank, int timeout_ms)
    : rank_(rank), timeout_ms_(timeout_ms), failure_(HEP_FAILURE_INITIALIZER) {
  failure_.rank = rank;
  failure_.missing_rank = failure_.via_rank = -1;
}

Status Waiter::check() const { return failure_status(failure()); }

Status Waiter::wait(const uint64_t* signal, uint64_t expected, const Awaited& awaited) {
  for (int spin = 0; spin < kSpins; ++spin)
    if (load_acquire(signal) >= expected) return {};

  const Deadline deadline = Deadline::after_ms(timeout_ms_);
  Backoff backoff;
  for (;;) {
    // The clock is read before the signal: a thread that was off its core for long still takes a
    // signal that has arrived meanwhile.
    const bool expired = deadline.expired();
    // So is the news: what a peer signalled before it went counts.
    const hepResult_t ended = interrupt_.load() ? reason_to_end(awaited) : hepSuccess;
    const uint64_t seen = load_acquire(signal);
    if (seen >= expected) return {};
    if (ended != hepSuccess) return fail(ended, awaited, expected, seen);
    if (expired) return fail(hepErrorTimeout, awaited, expected, seen);
    backoff.pause();
  }
}

void Waiter::stop(hepResult_t result) noexcept {
  const Lock lock(mutex_);
  if (stop_result_ != hepSuccess) return;
  stop_result_ = result;
  interrupt_.store(true);
}

void Waiter::peer_left(int peer) noexcept {
  const Lock lock(mutex_);
  left_[peer] = true;
  interrupt_.store(true);
}

hepResult_t Waiter::reason_to_end(const Awaited& awaited) const {
  const Lock lock(mutex_);
  if (stop_result_ != hepSuccess) return stop_result_;
  const bool by_way_of_another = awaited.via >= 0 && awaited.via != rank_;
  return left_[by_way_of_another ? awaited.via : awaited.peer] ? hepErrorPeerLost : hepSuccess;
}

hepFailure_t Waiter::failure() const {
  const Lock lock(mutex_);
  hepFailure_t failure = failure_;
  if (failure.result == hepSuccess) failure.result = stop_result_;
  return failure;
}

Status Waiter::fail(hepResult_t result, const Awaited& awaited, uint64_t expected, uint64_t seen) {
  const Lock lock(mutex_);
  if (failure_.result == hepSuccess) {
    failure_.result = result;
    failure_.operation = awaited.operation;
    failure_.phase = awaited.phase;
    failure_.missing_rank = awaited.peer;
    failure_.via_rank = awaited.via;
    failure_.number = awaited.number;
    failure_.expected = expected;
    failure_.seen = seen;
    failure_.mode = awaited.mode;
    failure_.lane = awaited.lane;
  }
  return failure_status(failure_);
}

}  // namespace hep
