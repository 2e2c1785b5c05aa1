// SPDX-License-Identifier: Apache-2.0
// A block of combine, for host and device: its warps and stages.
#pragma once

#include "backend/cuda/blocks/common.h"

namespace hep::combine {

constexpr int kPipelines = 2;
constexpr int kReducerWarps = 7;
constexpr int kWarpsPerPipeline = 1 + kReducerWarps;  // a loader and reducers
constexpr int kPipelineThreads = kWarpsPerPipeline * kWarpSize;
constexpr int kThreads = kPipelines * kPipelineThreads;

constexpr int kGradientThreads = 512;

// A reducer warp's slice of a row: 4 registers of 16 bytes a lane. Rows longer than all slices go in
// segments.
constexpr int kVectorsPerLane = 4;
constexpr int kVectorBytes = 16;
constexpr int kSliceBytes = kVectorsPerLane * kWarpSize * kVectorBytes;
constexpr int kSegmentBytes = kReducerWarps * kSliceBytes;

constexpr int kMaxLoadStages = 32;

// Most rows that a forwarder has in flight before it hands the oldest one's stage back.
constexpr int kMaxStoreStages = 4;
constexpr int kDefaultStoreStages = 3;

// For signals of a pipeline that some reducer warps have come to and others not: they are no further apart
// than the ring is deep.
constexpr int kSignalSlots = 2 * kMaxLoadStages;

// What is done with a stage.
struct Contribution {
  void* target;  // where the sum's segment goes, if this is its last row; of a signal: its address
  float weight;
  uint16_t bytes;  // of the segment
  uint16_t flags;
};
static_assert(sizeof(Contribution) == 16 && kSegmentBytes <= UINT16_MAX);

// Where the expert outputs of a rank for this one lie.
struct Outputs {
  const char* rows;
  uint32_t num_rows;
  bool in_place;  // they are read there; otherwise the rank sends partial sums
};

HEP_HOST_DEVICE constexpr int stage_bytes(int row_bytes) {
  return align_up(row_bytes < kSegmentBytes ? row_bytes : kSegmentBytes, kStageAlignment);
}

// Of PipelineMemory.
HEP_HOST_DEVICE constexpr int pipeline_bytes(int load_stages, int stage_bytes) {
  const int size = load_stages * stage_bytes +
                   2 * ring_control_bytes(load_stages, sizeof(Contribution)) +
                   kSignalSlots * sizeof(uint32_t) + kMaxRanks * sizeof(Outputs);
  return align_up(size, kStageAlignment);
}

}  // namespace hep::combine
