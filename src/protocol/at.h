// SPDX-License-Identifier: Apache-2.0
// Typed access to memory that is described by offsets.
#pragma once

#include <cstdint>

#include "protocol/host_device.h"

namespace hep {

template <typename T>
HEP_HOST_DEVICE inline T* at(void* base, uint64_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(base) + offset);
}
template <typename T>
HEP_HOST_DEVICE inline const T* at(const void* base, uint64_t offset) {
  return reinterpret_cast<const T*>(static_cast<const char*>(base) + offset);
}

}  // namespace hep
