// SPDX-License-Identifier: Apache-2.0
// Counts the consecutive ones of numbered things that come out of order.
#pragma once

#include <bitset>
#include <cstdint>

#include "network/descriptor.h"

namespace hep {

class ConsecutiveCount {
 public:
  // Takes note of a number of which the low 8 bits are known. False if it has come before, or is
  // further ahead than kMaxInFlight allows.
  bool add(uint32_t low_bits) {
    const uint32_t ahead = (low_bits - static_cast<uint32_t>(count_)) & 0xff;
    if (ahead >= kMaxInFlight || seen_[low_bits & 0xff]) return false;
    seen_.set(low_bits & 0xff);
    for (; seen_[count_ & 0xff]; ++count_) seen_.reset(count_ & 0xff);
    return true;
  }

  // All numbers below it have come.
  uint64_t count() const { return count_; }

 private:
  std::bitset<256> seen_;
  uint64_t count_ = 0;
};

}  // namespace hep
