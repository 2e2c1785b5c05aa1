// SPDX-License-Identifier: Apache-2.0
// A deadline is a point in time by which something must have happened.
#pragma once

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace hep {

class Deadline {
 public:
  static Deadline after_ms(int64_t milliseconds) {
    return Deadline(Clock::now() + std::chrono::milliseconds(milliseconds));
  }

  // Returns a deadline that also expires as soon as the descriptor `interrupt` has something to
  // read. `interrupt` must outlive it.
  Deadline or_interrupt(int interrupt) const {
    Deadline deadline = *this;
    deadline.interrupt_ = interrupt;
    return deadline;
  }

  // Returns the deadline, or `milliseconds` from now if that is earlier.
  Deadline or_in(int milliseconds) const {
    Deadline deadline = *this;
    deadline.time_ = std::min(time_, Clock::now() + std::chrono::milliseconds(milliseconds));
    return deadline;
  }

  bool expired() const { return Clock::now() >= time_ || interrupted(); }

  // Returns the timeout of poll() after which expired() must be asked again, in milliseconds.
  int remaining_ms() const {
    return interrupt_ < 0 ? left_ms() : interrupted() ? 0 : std::min(left_ms(), kInterruptPollMs);
  }

  // Returns the milliseconds that are left, rounded up, at least 0.
  int left_ms() const {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(time_ - Clock::now()).count();
    return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int kInterruptPollMs = 50;  // between two looks at the descriptor

  bool interrupted() const {
    pollfd entry{interrupt_, POLLIN, 0};  // poll passes over negative descriptors
    return interrupt_ >= 0 && ::poll(&entry, 1, 0) > 0;
  }

  explicit Deadline(Clock::time_point time) : time_(time) {}
  Clock::time_point time_;
  int interrupt_ = -1;
};

}  // namespace hep
