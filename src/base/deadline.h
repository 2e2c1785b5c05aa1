// SPDX-License-Identifier: Apache-2.0
// A point in time by which something must have happened.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace hep {

class Deadline {
 public:
  static Deadline after_ms(int64_t milliseconds) {
    return Deadline(Clock::now() + std::chrono::milliseconds(milliseconds));
  }

  bool expired() const { return Clock::now() >= time_; }

  // Milliseconds that are left, rounded up, at least 0: what poll() takes.
  int remaining_ms() const {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(time_ - Clock::now()).count();
    return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
  }

 private:
  using Clock = std::chrono::steady_clock;
  explicit Deadline(Clock::time_point time) : time_(time) {}
  Clock::time_point time_;
};

// The deadline, or `milliseconds` from now if that is earlier.
inline Deadline earlier(Deadline deadline, int milliseconds) {
  return Deadline::after_ms(std::min(deadline.remaining_ms(), milliseconds));
}

}  // namespace hep
