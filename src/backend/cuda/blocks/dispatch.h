// SPDX-License-Identifier: Apache-2.0
// A block of dispatch, for host and device: its warps and stages.
#pragma once

#include <hybridep.h>

#include "backend/cuda/blocks/common.h"
#include "protocol/records.h"

namespace hep::dispatch {

// The warps of a block: loaders and storers, then the warps that publish and that write weights,
// scales and the other extras. (A dispatch of 4096 FP8 tokens with scales on 2 H200s, 16 blocks,
// took 110 us with 6 of the latter, 107 with 10, 108 with 14.)
constexpr int kPipelines = 4;  // at most
constexpr int kFirstStorerWarp = kPipelines;
constexpr int kFirstExtrasWarp = 2 * kPipelines;
constexpr int kExtrasWarps = 10;
constexpr int kExtrasThreads = kExtrasWarps * kWarpSize;
constexpr int kThreads = (kFirstExtrasWarp + kExtrasWarps) * kWarpSize;

constexpr int kQuantizeThreads = 1024;

// A loader tells this to its storer about a stage.
struct RowItem {
  uint32_t row;       // the first flat row, or kEnd
  uint32_t num_rows;  // in the expert layouts 1
  uint32_t first;     // of its selections
  uint32_t count;
};
constexpr uint32_t kEnd = 0xffffffffu;

// One entry of a flat row's [K] experts and weights.
struct FlatExtra {
  int32_t expert;
  float weight;
};

// Flat rows of a source are consecutive, and mostly come from consecutive tokens. So a stage holds
// several rows, for fewer copies, as long as a pipeline keeps this many stages. (4 H200s with 16
// blocks: 5 stages of 2 rows gave 410 GB/s, 10 of 1 row 421.)
constexpr int kMaxRowsPerStage = 16;
constexpr int kFewStages = 6;

// A pipeline has at least this many rows in flight if a block has several pipelines.
constexpr int kFewRowsOfPipeline = 5;

// In the expert layouts a stage also holds the list of the row's selections, which the copy engine
// loads with the row. The list may begin 8 bytes off a 16-byte boundary.
HEP_HOST_DEVICE constexpr int selection_bytes(int layout, int top_k) {
  return layout != hepLayoutFlat ? static_cast<int>(align_up((top_k + 1) * sizeof(Selection), 16))
                                 : 0;
}

HEP_HOST_DEVICE constexpr int stage_bytes(int layout, int rows, int row_bytes, int top_k) {
  return align_up(rows * row_bytes + selection_bytes(layout, top_k), kStageAlignment);
}

HEP_HOST_DEVICE constexpr int pipeline_bytes(int stages, int stage_bytes) {
  return align_up(stages * stage_bytes + ring_control_bytes(stages, sizeof(RowItem)),
                  kStageAlignment);
}

// Static shared memory: the inputs that ranks gave, the beginnings and locations of sources' rows,
// entries of flat rows, and flags.
constexpr int kStaticBytes = 5376;
constexpr int kMaxDynamicBytes = kMaxSharedBytes - kStaticBytes;
static_assert(is_budget_of(kStaticBytes, kMaxRanks + sizeof(uint32_t) * (kMaxRanks + 1) +
                                             sizeof(char*) * kPipelines * kMaxRanks +
                                             sizeof(FlatExtra) * kExtrasThreads +
                                             3 * sizeof(bool)));

}  // namespace hep::dispatch
