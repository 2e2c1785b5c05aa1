// SPDX-License-Identifier: Apache-2.0
// A counter-based generator: numbers that are functions of a key alone.
#pragma once

#include <cstdint>

namespace perf {

// The finalizer of SplitMix64.
inline uint64_t hash(uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

inline uint64_t hash(uint64_t a, uint64_t b) { return hash(hash(a) ^ b); }

// From 0 to 1.
inline double unit(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

}  // namespace perf
