// SPDX-License-Identifier: Apache-2.0
// A block of dispatch, for host and device: its warps and stages.
#pragma once

#include <hybridep.h>

#include "backend/cuda/blocks/common.h"
#include "protocol/records.h"

namespace hep::dispatch {

// The warps of a block: loaders and storers, then those that publish and write what goes with the
// rows. (A dispatch of 4096 FP8 tokens with scales on 2 H200s, 16 blocks, took 110 us with 6 of
// these, 107 with 10, 108 with 14.)
constexpr int kPipelines = 4;  // at most
constexpr int kFirstStorerWarp = kPipelines;
constexpr int kFirstExtrasWarp = 2 * kPipelines;
constexpr int kExtrasWarps = 10;
constexpr int kExtrasThreads = kExtrasWarps * kWarpSize;
constexpr int kThreads = (kFirstExtrasWarp + kExtrasWarps) * kWarpSize;

constexpr int kQuantizeThreads = 1024;

// What a loader tells its storer of a stage.
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

// Flat rows of a source follow each other, and mostly come from tokens that follow each other: a
// stage holds several, for fewer copies, as long as a pipeline keeps so many stages. (4 H200s with
// 16 blocks: 5 stages of 2 rows gave 410 GB/s, 10 of 1 row 421.)
constexpr int kMaxRowsPerStage = 16;
constexpr int kFewStages = 6;

// Rows that a pipeline has in flight at least, where a block has several.
constexpr int kFewRowsOfPipeline = 5;

// In the expert layouts a stage holds the row's selections, too, whose list the copy engine brings
// along; it may begin 8 bytes off a 16-byte boundary.
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

// Static shared memory: what the ranks gave, where sources' rows begin and lie, entries of flat
// rows, and flags.
constexpr int kStaticBytes = 5376;
constexpr int kMaxDynamicBytes = kMaxSharedBytes - kStaticBytes;
static_assert(is_budget_of(kStaticBytes, kMaxRanks + sizeof(uint32_t) * (kMaxRanks + 1) +
                                             sizeof(char*) * kPipelines * kMaxRanks +
                                             sizeof(FlatExtra) * kExtrasThreads +
                                             3 * sizeof(bool)));

}  // namespace hep::dispatch
