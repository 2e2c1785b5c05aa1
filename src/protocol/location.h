// SPDX-License-Identifier: Apache-2.0
// Where peers read: a window or memory that its owner has registered.
#pragma once

#include <cstdint>

#include "protocol/host_device.h"

namespace hep {

// Where memory lies that peers cannot read.
constexpr uint64_t kNotInWindow = ~uint64_t{0};

// A place that peers can read: bytes from the beginning of a rank's window, or of memory that it
// has registered, whose slot among its registrations then stands above, counted from 1.
constexpr int kMaxRegistrations = 64;
constexpr int kPlaceOffsetBits = 56;
HEP_HOST_DEVICE constexpr uint64_t registered_place(int slot, uint64_t offset) {
  return (static_cast<uint64_t>(slot) + 1) << kPlaceOffsetBits | offset;
}
HEP_HOST_DEVICE constexpr int slot_of(uint64_t place) {  // -1: the window
  return static_cast<int>(place >> kPlaceOffsetBits) - 1;
}
HEP_HOST_DEVICE constexpr uint64_t offset_of(uint64_t place) {
  return place & ((uint64_t{1} << kPlaceOffsetBits) - 1);
}

}  // namespace hep
