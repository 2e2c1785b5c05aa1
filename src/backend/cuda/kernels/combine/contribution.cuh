// SPDX-License-Identifier: Apache-2.0
// What combine moves: rows that contribute to sums. A loader warp brings them into a ring; reducer
// warps add them up, or a forwarder passes them on as they are.
#pragma once

#include "backend/cuda/blocks/combine.h"
#include "backend/cuda/kernels/common/numbers.cuh"
#include "backend/cuda/kernels/common/ring.cuh"
#include "backend/cuda/kernels/common/warp.cuh"
#include "protocol/shape.h"

namespace hep::combine {

// Reducer warps that rows of so many bytes have slices for. The others stay away: to hand stages back they would
// issue as many instructions as to add.
__host__ __device__ constexpr int num_reducers(int row_bytes) {
  return row_bytes < kSegmentBytes ? ceil_div(row_bytes, kSliceBytes) : kReducerWarps;
}

enum : uint16_t {
  kLast = 1,     // ends a sum
  kNothing = 2,  // the stage holds no row: +0 is added
  kSignal = 4,   // no row: the target becomes the epoch once everything up to here is written
  kEnd = 8,
  kPartials = 16,  // the rows are partial sums
  kOwn =
      32,  // one of this rank's own outputs: they are first summed to a partial sum by themselves
  kEndsPartial = 64  // the last of them
};

// One pipeline's share of shared memory, pipeline_bytes() of it. Reducers and forwarder have the same stages, one after the
// other.
//
//   stages           [load_stages][stage_bytes]
//   reducing         barriers and items of the reducers' ring
//   forwarding       barriers and items of the forwarder's
//   signal_arrivals  [kSignalSlots] reducer warps that have come to a signal; 0 between its turns
//   outputs          [kMaxRanks]
struct PipelineMemory {
  Ring<Contribution> reducing, forwarding;
  uint32_t* signal_arrivals;
  Outputs* outputs;

  __device__ PipelineMemory(char* memory, int load_stages, int stage_bytes)
      : reducing(memory, memory + load_stages * stage_bytes, load_stages, stage_bytes),
        forwarding(memory, reducing.end(), load_stages, stage_bytes),
        signal_arrivals(reinterpret_cast<uint32_t*>(forwarding.end())),
        outputs(reinterpret_cast<Outputs*>(signal_arrivals + kSignalSlots)) {}

  // By the pipeline's warps, before a barrier of the block.
  __device__ void initialize(int warp, int reducers, bool forwards) const {
    const WorkShare warps{warp, kWarpsPerPipeline};
    reducing.initialize(reducers * kArrivingWarpLanes, warps);
    if (forwards) forwarding.initialize(kArrivingWarpLanes, warps);
    static_assert(kSignalSlots <= kPipelineThreads);
    const int slot = warp * kWarpSize + warp_lane();
    if (slot < kSignalSlots) signal_arrivals[slot] = 0;
  }
};

// The loader's side.
struct ContributionLoader {
  WarpProducer<Contribution> producer;

  // The lanes of `active` each load a contribution; `row` NULL: nothing contributes. By all lanes.
  __device__ void load(uint32_t active, const char* row, Contribution item) {
    if (row == nullptr) item.flags |= kNothing;
    producer.load(active, item, row, row != nullptr ? item.bytes : 0);
  }

  __device__ void signal(uint64_t* address) { load(1, nullptr, {address, 0.0f, 0, kSignal}); }
  __device__ void end() { load(1, nullptr, {nullptr, 0.0f, 0, kEnd}); }
};

// Rows of sums, one a lane of `active`: where the row lies, NULL for nothing, what it counts, where the sum
// goes, and how it stands in it.
struct WarpLaneContributions {
  uint32_t active;
  const char* row;
  float weight;
  char* target;
  uint16_t flags;
};

// Rows of In are added up to rows of Out, segment by segment: rows of more than one segment must be those
// of one sum. By all lanes.
template <typename In, typename Out>
__device__ void load_sums(ContributionLoader& loader, int row_bytes,
                          const WarpLaneContributions& lanes) {
  for (int offset = 0; offset < row_bytes; offset += kSegmentBytes)
    loader.load(lanes.active, lanes.row != nullptr ? lanes.row + offset : nullptr,
                {lanes.target + scaled_bytes<In, Out>(offset), lanes.weight,
                 static_cast<uint16_t>(min(row_bytes - offset, kSegmentBytes)), lanes.flags});
}

}  // namespace hep::combine
