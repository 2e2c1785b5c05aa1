// SPDX-License-Identifier: Apache-2.0
// Signals between ranks: 64-bit words of a window, each written by one rank alone.
#pragma once

#include <cstdint>

namespace hep {

// What the writer did before its store_release is visible after the load that sees it.
inline uint64_t load_acquire(const uint64_t* signal) {
  return __atomic_load_n(signal, __ATOMIC_ACQUIRE);
}

inline void store_release(uint64_t* signal, uint64_t value) {
  __atomic_store_n(signal, value, __ATOMIC_RELEASE);
}

}  // namespace hep
