// SPDX-License-Identifier: Apache-2.0
// A block of the update and dispatch in one launch, for host and device: its warps and stages.
#pragma once

#include "backend/cuda/blocks/dispatch.h"
#include "protocol/choices.h"

namespace hep::fused {

// The first warps of a block compute the places.
constexpr int kAssigningThreads = kAssigningWarps * kWarpSize;
constexpr int kLoaderWarp = kAssigningWarps;
constexpr int kStorerWarp = kAssigningWarps + 1;
constexpr int kOwnTokensWarp = kAssigningWarps + 2;
constexpr int kOtherWarps = 3;
constexpr int kThreads = (kAssigningWarps + kOtherWarps) * kWarpSize;

// The headers of the ranks, in shared memory.
struct Sources {
  uint32_t num_tokens[kMaxRanks];
  uint32_t first_token[kMaxRanks + 1];  // tokens of the ranks before, in canonical order
  const char* rows[kMaxRanks];
  uint8_t flags[kMaxRanks];
  uint32_t max_selections;  // of a token; of a map, those that were cut included
};

// The rows of the block, in canonical order.
struct BlockRows {
  uint32_t begin, end;
};

// Classes of tokens: those before the block's share, those of each warp's part of it, and those
// after it.
constexpr int kClasses = kAssigningWarps + 2;

// assign_bytes() states the size of AssignMemory without knowing warps and stages.
constexpr uint64_t place_memory_bytes(const Shape& shape) {
  const uint64_t selections = uint64_t{1} * shape.num_ranks * shape.max_tokens * shape.max_top_k;
  return align_up(sizeof(Selection) * kAssigningThreads + sizeof(uint32_t) * shape.num_ranks +
                      sizeof(int32_t) * (2 * shape.num_local_experts() + 1) +
                      sizeof(uint32_t) * kClasses * assign_counters(shape) +
                      sizeof(uint16_t) * selections,
                  kStageAlignment);
}
constexpr Shape kSmallShape{1, 1, 1, 1, 16, 16, 0, 0, 0};
constexpr Shape kLargeShape{72, 4032, 512, 8, 14336, 14336, 0, 0, 0};
static_assert(place_memory_bytes(kSmallShape) == assign_bytes(kSmallShape));
static_assert(place_memory_bytes(kLargeShape) == assign_bytes(kLargeShape));

HEP_HOST_DEVICE constexpr int stage_bytes(int row_bytes, int stage_scale_bytes) {
  return align_up(row_bytes + stage_scale_bytes, kStageAlignment);
}

// Static shared memory: Sources, BlockRows, entries of flat rows, and flags.
constexpr int kStaticBytes = 6144;
constexpr int kMaxDynamicBytes = kMaxSharedBytes - kStaticBytes;
static_assert(is_budget_of(kStaticBytes, sizeof(Sources) + sizeof(BlockRows) +
                                             sizeof(dispatch::FlatExtra) * kAssigningThreads +
                                             2 * sizeof(bool)));
static_assert(kMaxAssignBytes < kMaxDynamicBytes);

}  // namespace hep::fused
