// SPDX-License-Identifier: Apache-2.0
// Small things that a warp does together.
#pragma once

#include <cstdint>

namespace hep {

constexpr int kWarpSize = 32;
constexpr uint32_t kFullWarp = 0xffffffffu;

__device__ inline int lane_index() { return threadIdx.x % kWarpSize; }
__device__ inline int warp_index() { return threadIdx.x / kWarpSize; }
__device__ inline uint32_t lanes_below() { return (1u << lane_index()) - 1; }

__device__ inline uint32_t warp_sum(uint32_t value) { return __reduce_add_sync(kFullWarp, value); }

__device__ inline uint32_t warp_inclusive_sum(uint32_t value) {
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const uint32_t below = __shfl_up_sync(kFullWarp, value, distance);
    if (lane_index() >= distance) value += below;
  }
  return value;
}

}  // namespace hep
