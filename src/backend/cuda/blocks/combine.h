// SPDX-License-Identifier: Apache-2.0
// A block of combine, for host and device: its warps and stages.
#pragma once

#include "backend/cuda/blocks/common.h"

namespace hep::combine {

// A block has as many pipelines as its warps make. A pipeline is a loader and so many reducers.
constexpr int kMaxWarps = 16;
constexpr int kThreads = kMaxWarps * kWarpSize;
constexpr int kMaxReducers = 7;
HEP_HOST_DEVICE constexpr int warps_of_pipeline(int reducers) { return 1 + reducers; }
HEP_HOST_DEVICE constexpr int num_pipelines(int reducers) {
  return kMaxWarps / warps_of_pipeline(reducers);
}

constexpr int kGradientThreads = 512;

// A reducer warp's slice of a row: 4 registers of 16 bytes a lane. A row that is longer than the
// slices of a pipeline goes in segments, which are as equal as whole registers of a warp can be.
constexpr int kVectorsPerLane = 4;
constexpr int kWarpVectorBytes = 16 * kWarpSize;
constexpr int kSliceBytes = kVectorsPerLane * kWarpVectorBytes;
HEP_HOST_DEVICE constexpr int num_segments(int row_bytes, int reducers) {
  return ceil_div(row_bytes, reducers * kSliceBytes);
}
HEP_HOST_DEVICE constexpr int segment_bytes(int row_bytes, int reducers) {
  return align_up(ceil_div(row_bytes, num_segments(row_bytes, reducers)), kWarpVectorBytes);
}

constexpr int kMaxLoadStages = 32;

// A forwarder has at most this many rows in flight before it frees the stage of the oldest.
constexpr int kMaxStoreStages = 4;
constexpr int kDefaultStoreStages = 3;

// Counters for signals of a pipeline that some reducer warps have come to and others not. The warps
// are no further apart than the ring is deep.
constexpr int kSignalSlots = 2 * kMaxLoadStages;

// A pipeline gives about so many signals in a combine, each for as many chunks as it then has to: a
// signal for several peers takes no longer than one for one.
constexpr int kSignalsOfPipeline = 24;
HEP_HOST_DEVICE constexpr int chunks_per_signal(int num_chunks, int pipelines) {
  const int chunks = ceil_div(ceil_div(num_chunks, pipelines), kSignalsOfPipeline);
  return chunks < 1 ? 1 : chunks < kWarpSize ? chunks : kWarpSize;
}

// What is done with a stage.
struct Contribution {
  void* target;  // where the sum's segment goes, if this is its last row
  float weight;
  uint16_t bytes;  // of the segment
  uint16_t flags;
};
static_assert(sizeof(Contribution) == 16 && kMaxReducers * kSliceBytes <= UINT16_MAX);

// Tells where the expert outputs of a rank for this rank lie.
struct Outputs {
  const char* rows;
  uint32_t num_rows;
  bool in_place;  // they are read there; otherwise the rank sends partial sums
};

// Of PipelineMemory.
HEP_HOST_DEVICE constexpr int pipeline_bytes(int load_stages, int stage_bytes) {
  const int size = load_stages * stage_bytes +
                   2 * ring_control_bytes(load_stages, sizeof(Contribution)) +
                   kSignalSlots * sizeof(uint32_t) + kMaxRanks * sizeof(Outputs);
  return align_up(size, kStageAlignment);
}

}  // namespace hep::combine
