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

enum : uint16_t {
  kLast = 1,     // ends a sum
  kNothing = 2,  // the stage holds no row: +0 is added
  kSignal = 4,   // no row: words become the epoch once all before is written; the stage lists them
  kEnd = 8,
  kPartials = 16,  // the rows are partial sums
  kOwn =
      32,  // one of this rank's own outputs: they are first summed to a partial sum by themselves
  kEndsPartial = 64  // the last of them
};

// One pipeline's share of shared memory, pipeline_bytes() of it. Reducers and forwarder have the
// same stages, one after the other.
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
    const WorkShare warps{warp, warps_of_pipeline(reducers)};
    reducing.initialize(reducers * kArrivingWarpLanes, warps);
    if (forwards) forwarding.initialize(kArrivingWarpLanes, warps);
    static_assert(kSignalSlots <= warps_of_pipeline(1) * kWarpSize);
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

  // The words of the first `count` lanes are to be signalled. By all lanes.
  __device__ void signal(uint64_t* word, int count) {
    producer.wait();
    const Ring<Contribution>& ring = producer.ring;
    auto** listed = reinterpret_cast<uint64_t**>(ring.stage(producer.cursor.stage));
    for (int i = 0; i < count; ++i) {
      const uint64_t address = __shfl_sync(kFullWarp, reinterpret_cast<uint64_t>(word), i);
      if (warp_lane() == 0) listed[i] = reinterpret_cast<uint64_t*>(address);
    }
    ptx::fence_proxy_async_shared();  // the copy engine writes the stage next
    load(1, nullptr, {nullptr, 0.0f, static_cast<uint16_t>(count * sizeof(uint64_t*)), kSignal});
  }
  __device__ void end() { load(1, nullptr, {nullptr, 0.0f, 0, kEnd}); }
};

// The word that a lane has to signal; NULL if it has none.
__device__ inline uint64_t* signalled_by_warp_lane(const Contribution& item, const char* stage) {
  const bool has_one = warp_lane() * sizeof(uint64_t*) < item.bytes;
  return has_one ? reinterpret_cast<uint64_t* const*>(stage)[warp_lane()] : nullptr;
}

// Rows of sums, one a lane of `active`: the lanes of the same sum, where the row lies, NULL for
// nothing, what it counts, where the sum goes, and how it stands in it.
struct WarpLaneContributions {
  uint32_t active;
  uint32_t of_sum;
  const char* row;
  float weight;
  char* target;
  uint16_t flags;
};

// Rows of In, which have `row_bytes` and go in segments, are added up to rows of Out: sum after
// sum, and of each its segments, which are sums of their own. By all lanes.
template <typename In, typename Out>
__device__ void load_sums(ContributionLoader& loader, int row_bytes, int segment_bytes,
                          const WarpLaneContributions& lanes) {
  const bool whole = segment_bytes >= row_bytes;
  for (uint32_t left = lanes.active; left != 0;) {
    const uint32_t now =
        whole ? left : left & __shfl_sync(kFullWarp, lanes.of_sum, __ffs(left) - 1);
    for (int offset = 0; offset < row_bytes; offset += segment_bytes)
      loader.load(now, lanes.row != nullptr ? lanes.row + offset : nullptr,
                  {lanes.target + scaled_bytes<In, Out>(offset), lanes.weight,
                   static_cast<uint16_t>(min(row_bytes - offset, segment_bytes)), lanes.flags});
    left &= ~now;
  }
}

}  // namespace hep::combine
