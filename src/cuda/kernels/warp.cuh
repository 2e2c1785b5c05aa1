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

// A warp handles as many tokens or rows at once as it has lanes for their top_k selections, one each.
struct SelectionLanes {
  int groups;         // tokens or rows at once
  int group, index;   // of this lane; lanes that are left over are in a group past the others
  uint32_t of_group;  // the lanes of this lane's group

  __device__ explicit SelectionLanes(int top_k)
      : groups(kWarpSize / top_k), group(lane_index() / top_k), index(lane_index() % top_k) {
    const uint32_t one_group = top_k == kWarpSize ? kFullWarp : (1u << top_k) - 1;
    of_group = one_group << (group * top_k);
  }
};

// use(i, load(i)) for i = first, first + stride, ... below count; kAtOnce loads are under way before
// the first is used.
template <int kAtOnce, typename Load, typename Use>
__device__ void for_each_loaded(uint32_t first, uint32_t stride, uint32_t count, Load load,
                                Use use) {
  for (uint32_t base = first; base < count; base += kAtOnce * stride) {
    decltype(load(0)) loaded[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (base + j * stride < count) loaded[j] = load(base + j * stride);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (base + j * stride < count) use(base + j * stride, loaded[j]);
  }
}

}  // namespace hep
