// SPDX-License-Identifier: Apache-2.0
// The choices of an update that is part of a dispatch: their words in a window, and whether all of
// them find room in a block.
#pragma once

#include <cstdint>

#include "protocol/host_device.h"
#include "protocol/shape.h"

namespace hep {

// What precedes the choices of a source: see fused/exchange.cuh.
constexpr int kChoiceHeaderWords = 5;

// Words that carry the experts of a token, two each, at most.
HEP_HOST_DEVICE constexpr int choice_words(int top_k) { return ceil_div(top_k, 2); }

// A dispatch can update its routing in the same launch where the choices of all ranks find room in
// the shared memory of a block, beside stages for a few rows: see fused/assign.cuh. All ranks
// decide alike.
constexpr int kAssigningWarps = 16;
constexpr uint64_t kMaxAssignBytes = 220 * 1024;
constexpr int kFewestStages = 4;

// Counters of a class of tokens: selections by local expert, rows, selections.
HEP_HOST_DEVICE constexpr int assign_counters(const Shape& shape) {
  return shape.num_local_experts() + 2;
}
HEP_HOST_DEVICE constexpr int assign_words(const Shape& shape) {
  return shape.num_ranks + 2 * shape.num_local_experts() + 1 +
         (kAssigningWarps + 2) * assign_counters(shape);
}
HEP_HOST_DEVICE constexpr uint64_t assign_bytes(const Shape& shape) {
  constexpr int kLanes = 32, kSelectionBytes = 8, kStageAlignment = 128;
  return align_up(
      kAssigningWarps * kLanes * kSelectionBytes + assign_words(shape) * sizeof(uint32_t) +
          uint64_t{1} * shape.num_ranks * shape.max_tokens * shape.max_top_k * sizeof(uint16_t),
      kStageAlignment);
}
HEP_HOST_DEVICE constexpr bool can_assign(const Shape& shape) {
  return assign_bytes(shape) + uint64_t{kFewestStages} * shape.row_bytes <= kMaxAssignBytes;
}

}  // namespace hep
