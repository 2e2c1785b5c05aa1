// SPDX-License-Identifier: Apache-2.0
// Small things that a warp does together.
#pragma once

#include <cstdint>

#include "backend/cuda/blocks/common.h"

namespace hep {

constexpr uint32_t kFullWarp = 0xffffffffu;

__device__ inline int warp_lane() { return threadIdx.x % kWarpSize; }
__device__ inline int warp_index() { return threadIdx.x / kWarpSize; }
__device__ inline uint32_t warp_lanes_below() { return (1u << warp_lane()) - 1; }

__device__ inline uint32_t warp_sum(uint32_t value) { return __reduce_add_sync(kFullWarp, value); }

__device__ inline uint32_t warp_inclusive_sum(uint32_t value) {
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const uint32_t below = __shfl_up_sync(kFullWarp, value, distance);
    if (warp_lane() >= distance) value += below;
  }
  return value;
}

__device__ inline uint32_t warp_lanes_above() { return ~(warp_lanes_below() | 1u << warp_lane()); }

// The lanes of [begin, end), which is not empty.
__device__ inline uint32_t lanes_between(int begin, int end) {
  return (kFullWarp >> (kWarpSize - (end - begin))) << begin;
}

// Entries, one a lane, that consist of `count` items each; a batch of whole entries has an item for
// each lane.
struct EntryItems {
  uint32_t begin, end;  // of the lane's entry, counted over all lanes

  __device__ explicit EntryItems(uint32_t count) {
    end = warp_inclusive_sum(count);
    begin = end - count;
  }

  // The items of the entries of lanes [first, last).
  struct Batch {
    int entry;          // the lane whose entry the lane's item belongs to
    uint32_t index;     // of the item in its entry
    uint32_t siblings;  // lanes whose items are of the same entry; 0: the lane has no item
  };
  __device__ Batch batch(int first, int last) const {
    const uint32_t start = __shfl_sync(kFullWarp, begin, first);
    const uint32_t size = __shfl_sync(kFullWarp, end, last - 1) - start;
    const uint32_t item = start + warp_lane();
    // The last lane whose entry begins at the item or before: empty ones lie before the next one's
    // begin.
    int entry = 0;
    for (int step = kWarpSize / 2; step > 0; step /= 2)
      if (__shfl_sync(kFullWarp, begin, entry + step) <= item) entry += step;
    entry = min(entry, last - 1);
    Batch found{entry, item - __shfl_sync(kFullWarp, begin, entry), 0};
    const uint32_t entry_end = __shfl_sync(kFullWarp, end, entry);
    if (warp_lane() < size)
      found.siblings = lanes_between(warp_lane() - found.index, entry_end - start);
    return found;
  }

  // How far a batch from lane `first` reaches: to the last lane whose entry still fits, of groups
  // of `group` lanes whose entries belong together. One group always fits.
  __device__ int end_of_batch(int first, int group, int last) const {
    const uint32_t start = __shfl_sync(kFullWarp, begin, first);
    const int last_of_group = min(warp_lane() / group * group + group, kWarpSize) - 1;
    const uint32_t group_end = __shfl_sync(kFullWarp, end, last_of_group);
    const bool fits = warp_lane() >= first && warp_lane() < last && group_end - start <= kWarpSize;
    return first + __popc(__ballot_sync(kFullWarp, fits));
  }
};

// Divides numbers below kLimit by one that is known only at run time, at the price of a product: (x
// + 0.5) / d is at least 0.5 / d away from an integer, its rounding error at most 2^-22 * x / d.
struct Divisor {
  static constexpr int kLimit = 1 << 21;
  float inverse;

  __device__ explicit Divisor(int divisor) : inverse(1.0f / static_cast<float>(divisor)) {}
  __device__ int operator()(int value) const {
    return static_cast<int>((static_cast<float>(value) + 0.5f) * inverse);
  }
};

// A warp handles as many tokens or rows at once as it has lanes for their top_k selections, one
// each.
struct SelectionWarpLanes {
  int groups;         // tokens or rows at once
  int group, index;   // of this lane; lanes that are left over are in a group past the others
  uint32_t of_group;  // the lanes of this lane's group

  __device__ explicit SelectionWarpLanes(int top_k) {
    const Divisor by_top_k(top_k);
    groups = by_top_k(kWarpSize);
    group = by_top_k(warp_lane());
    index = warp_lane() - group * top_k;
    const uint32_t one_group = top_k == kWarpSize ? kFullWarp : (1u << top_k) - 1;
    of_group = one_group << (group * top_k);
  }
};

// A part of a rank's tokens, or of all ranks'.
struct TokenRange {
  int begin, end;
};

// Threads or warps of a block that share something out among them, and the calling one's number
// there.
struct WorkShare {
  int index, count;
};

__device__ inline WorkShare all_threads() {
  return {static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)};
}

// Of parts that are as equal as whole tokens can be.
__device__ inline TokenRange part_of_tokens(int num_tokens, int part, int tokens_of_part) {
  return {min(part * tokens_of_part, num_tokens), min((part + 1) * tokens_of_part, num_tokens)};
}

// use(i, load(i)) for i = first, first + stride, ... below count; kAtOnce loads are under way
// before the first is used.
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
