// SPDX-License-Identifier: Apache-2.0
// The warps and the shared memory of a block of every kernel, for host and device.
#pragma once

#include <cstdint>

#include "protocol/host_device.h"
#include "protocol/shape.h"

namespace hep {

constexpr int kWarpSize = 32;

// Bulk copies need an alignment of 16 bytes; stages begin at whole cache lines.
constexpr int kStageAlignment = 128;

// Returns the bytes of a ring's barriers and items.
HEP_HOST_DEVICE constexpr int ring_control_bytes(int depth, int item_bytes) {
  return depth * (2 * static_cast<int>(sizeof(uint64_t)) + item_bytes);
}

// The shared memory that a block may use. Compute capabilities 9.0 and 10.0 offer this much. A
// device that offers less is refused.
constexpr int kMaxSharedBytes = 227 * 1024;

// A kernel declares at most this much static shared memory, or the kStaticBytes of its operation's
// header. tests/unit/machine_code.py reads both and compares them with the report of ptxas.
constexpr int kDefaultStaticBytes = 3072;
constexpr int kMaxDynamicSharedBytes = kMaxSharedBytes - kDefaultStaticBytes;

// Returns whether a budget for static shared memory fits the declared bytes: it is no smaller, and
// hardly larger.
constexpr bool is_budget_of(int budget, uint64_t declared_bytes) {
  const uint64_t aligned = align_up(declared_bytes, kStageAlignment);
  return aligned <= static_cast<uint64_t>(budget) &&
         static_cast<uint64_t>(budget) < aligned + 8 * kStageAlignment;
}

}  // namespace hep
