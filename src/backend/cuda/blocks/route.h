// SPDX-License-Identifier: Apache-2.0
// The blocks of the routing update, for host and device.
#pragma once

#include "backend/cuda/blocks/common.h"
#include "protocol/records.h"

namespace hep::route {

constexpr int kMaxThreads = 1024;
constexpr int kMapThreads = 512;

// Of SendMemory and ReceiveMemory.
constexpr uint64_t send_bytes(const Shape& shape, int warps) {
  return warps * kWarpSize * sizeof(Selection) +
         sizeof(uint32_t) * (warps + 1) * num_counters(shape);
}
constexpr uint64_t receive_bytes(const Shape& shape) {
  return sizeof(uint32_t) *
         (shape.num_experts + 3 * (shape.num_ranks + 1) + kMaxThreads / kWarpSize);
}

}  // namespace hep::route
