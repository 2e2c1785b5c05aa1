// SPDX-License-Identifier: Apache-2.0
// Where peers read: a window or memory that its owner has registered.
#pragma once

#include <cstdint>

#include "protocol/host_device.h"

namespace hep {

// Where memory lies that peers cannot read.
constexpr uint64_t kNotInWindow = ~uint64_t{0};

// A location that peers can read: bytes from the beginning of a rank's window, or of memory that it
// has registered, whose slot among its registrations then stands above, counted from 1.
constexpr int kMaxRegistrations = 64;
constexpr int kLocationOffsetBits = 56;
HEP_HOST_DEVICE constexpr uint64_t registered_location(int slot, uint64_t offset) {
  return (static_cast<uint64_t>(slot) + 1) << kLocationOffsetBits | offset;
}
HEP_HOST_DEVICE constexpr int registration_of(uint64_t location) {  // -1: the window
  return static_cast<int>(location >> kLocationOffsetBits) - 1;
}
HEP_HOST_DEVICE constexpr uint64_t offset_of(uint64_t location) {
  return location & ((uint64_t{1} << kLocationOffsetBits) - 1);
}

}  // namespace hep
