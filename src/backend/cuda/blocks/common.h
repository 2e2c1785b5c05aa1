// SPDX-License-Identifier: Apache-2.0
// What a block of every kernel consists of, for host and device: warps, and shared memory.
#pragma once

#include <cstdint>

#include "protocol/host_device.h"
#include "protocol/shape.h"

namespace hep {

constexpr int kWarpSize = 32;

// Bulk copies want 16 bytes; stages begin at whole cache lines.
constexpr int kStageAlignment = 128;

// Barriers and items of a ring, whose items have so many bytes.
HEP_HOST_DEVICE constexpr int ring_control_bytes(int depth, int item_bytes) {
  return depth * (2 * static_cast<int>(sizeof(uint64_t)) + item_bytes);
}

// Shared memory that a block may use: all that compute capabilities 9.0 and 10.0 offer. A device
// that offers less is refused.
constexpr int kMaxSharedBytes = 227 * 1024;

// Shared memory that a kernel declares by itself takes at most so many bytes, or the kStaticBytes
// that the header of its operation states. tests/unit/machine_code.py reads both, and compares them
// with what ptxas reports.
constexpr int kDefaultStaticBytes = 3072;
constexpr int kMaxDynamicSharedBytes = kMaxSharedBytes - kDefaultStaticBytes;

// Whether a budget for static shared memory fits what is declared: no less, and hardly more.
constexpr bool is_budget_of(int budget, uint64_t declared_bytes) {
  const uint64_t aligned = align_up(declared_bytes, kStageAlignment);
  return aligned <= static_cast<uint64_t>(budget) &&
         static_cast<uint64_t>(budget) < aligned + 8 * kStageAlignment;
}

}  // namespace hep
