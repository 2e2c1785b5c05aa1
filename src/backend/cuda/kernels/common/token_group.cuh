// SPDX-License-Identifier: Apache-2.0
// The tokens that a warp handles at once, a lane for each of their selections: which ranks and
// experts these select, and in which order their records stand.
#pragma once

#include "backend/cuda/kernels/common/warp.cuh"
#include "protocol/records.h"
#include "protocol/shape.h"

namespace hep {

// Stands for no expert, and for no rank.
constexpr int kNone = -1;
static_assert(static_cast<uint16_t>(kNone) == kNoExpert);

// Which rank hosts an expert.
struct RankOfExpert : Divisor {
  __device__ explicit RankOfExpert(const Shape& shape) : Divisor(shape.num_local_experts()) {}
};

// Sorts each token's selections, one a lane, by (expert, k); those without an expert come last.
// `place` goes along. By all lanes; returns the lane's after sorting.
__device__ inline Selection sort_by_expert(const SelectionWarpLanes& lanes, int top_k, int expert,
                                           uint32_t place, Selection* sorted) {
  const uint32_t key = static_cast<uint32_t>(expert) * kMaxTopK + lanes.index;  // kNone comes last
  static_assert(kMaxExperts < 0xffffffffu / kMaxTopK);
  int smaller = 0;
#pragma unroll 8
  for (int k = 0; k < top_k; ++k)
    smaller += __shfl_sync(kFullWarp, key, lanes.group * top_k + k) < key;
  if (lanes.group < lanes.groups)
    sorted[lanes.group * top_k + smaller] = {place, static_cast<uint16_t>(expert),
                                             static_cast<uint16_t>(lanes.index)};
  __syncwarp();
  const Selection mine = sorted[warp_lane()];
  __syncwarp();
  return mine;
}

}  // namespace hep
