// SPDX-License-Identifier: Apache-2.0
// What the pipelines of combine do with the rows that their loaders bring: reducer warps add them up
// and send the sums; a sender sends them as they are.
#pragma once

#include "cuda/kernels/bfloat16.cuh"
#include "cuda/kernels/pipeline.cuh"
#include "cuda/kernels/warp.cuh"

namespace hep {

constexpr int kPipelines = 2;
constexpr int kReducerWarps = 7;
constexpr int kWarpsPerPipeline = 1 + kReducerWarps;
constexpr int kThreads = kPipelines * kWarpsPerPipeline * kWarpSize;

// A warp's slice: 4 registers of 16 bytes a lane. Rows longer than all slices go in segments.
constexpr int kVectorsPerLane = 4;
constexpr int kSliceBytes = kVectorsPerLane * kWarpSize * sizeof(uint4);
constexpr int kSegmentBytes = kReducerWarps * kSliceBytes;

// A signal is given when this many later rows have been sent, or nothing more is to send.
constexpr int kStoresBeforeSignal = 2;

// Rows that a warp may have on their way out; each has a buffer of a slice.
constexpr int kMaxStoreStages = 4;
constexpr int kDefaultStoreStages = 2;

// Rows that a sender has in flight before it hands the oldest one's stage back, if the ring is more
// than twice as deep; otherwise one. (At 14 KiB and more a row it is 8 deep.)
constexpr int kCopiesInFlight = 4;

// Signals whose rows are still on their way out, over all reducer warps of a pipeline: they are at
// most a ring apart.
constexpr int kSignalSlots = 64;
constexpr int kMaxLoadStages = 32;
static_assert(kSignalSlots > kMaxLoadStages + 1);

// What the reducers do with a stage.
struct Contribution {
  char* destination;  // of the sum's segment
  uint64_t* signal;   // set to the epoch once everything up to this sum is written; NULL: none
  float weight;
  uint32_t bytes;  // of the segment
  uint32_t flags;
  uint32_t reserved;
};
enum : uint32_t {
  kFirst = 1,    // begins a sum
  kLast = 2,     // ends it
  kNothing = 4,  // holds no row: the sum is +0
  kEnd = 8
};

struct PipelineMemory {
  Ring<Contribution> ring;
  int store_stages;
  char* outgoing;             // [kReducerWarps][store_stages][kSliceBytes]
  uint32_t* signal_arrivals;  // [kSignalSlots] reducer warps that have come to a signal

  __device__ PipelineMemory(char* memory, int load_stages, int num_store_stages, int stage_bytes)
      : ring(memory, load_stages, stage_bytes),
        store_stages(num_store_stages),
        outgoing(memory + Ring<Contribution>::bytes(load_stages, stage_bytes)),
        signal_arrivals(
            reinterpret_cast<uint32_t*>(outgoing + kReducerWarps * store_stages * kSliceBytes)) {}

  __host__ __device__ static constexpr int bytes(int load_stages, int store_stages,
                                                 int stage_bytes) {
    return Ring<Contribution>::bytes(load_stages, stage_bytes) +
           kReducerWarps * store_stages * kSliceBytes + kSignalSlots * sizeof(uint32_t);
  }

  // Stages of a ring that takes all this memory: an outgoing row has at least a stage's size, and the
  // barriers and items of those stages find room in place of signal_arrivals.
  __host__ __device__ static constexpr int sending_depth(int load_stages, int store_stages) {
    return load_stages + store_stages;
  }
};
static_assert(kMaxStoreStages * (2 * sizeof(uint64_t) + sizeof(Contribution)) <=
              kSignalSlots * sizeof(uint32_t));

__host__ __device__ constexpr int stage_bytes(int row_bytes) {
  return align_up(row_bytes < kSegmentBytes ? row_bytes : kSegmentBytes, kStageAlignment);
}

// ------------------------------------------------------------------------------------- reducers

// A reducer warp's own bookkeeping of its stores: which buffer is next, and which signal waits for
// them. A signal is given after later rows have been sent, so that the warp seldom waits for the wire.
// Stores and waits are those of lane 0.
struct Outgoing {
  const PipelineMemory& memory;
  uint64_t epoch;
  char* buffers;
  int next_buffer = 0;
  uint64_t* pending = nullptr;
  int stores_since = 0;
  bool stored = false;   // anything since the last signal
  uint32_t signals = 0;  // that this warp has come to

  __device__ Outgoing(const PipelineMemory& pipeline, uint64_t combine_epoch, int reducer)
      : memory(pipeline),
        epoch(combine_epoch),
        buffers(pipeline.outgoing + reducer * pipeline.store_stages * kSliceBytes) {}

  // All lanes: a buffer that no store reads any more.
  __device__ uint4* buffer() {
    if (lane_index() == 0) wait_read(memory.store_stages - 1);
    __syncwarp();
    return reinterpret_cast<uint4*>(buffers + next_buffer * kSliceBytes);
  }

  // All lanes: sends what they have written to the buffer.
  __device__ void send_buffer(char* destination, uint32_t bytes) {
    ptx::fence_proxy_async_shared();
    __syncwarp();
    if (lane_index() == 0) send(destination, buffers + next_buffer * kSliceBytes, bytes);
    if (++next_buffer == memory.store_stages) next_buffer = 0;
  }

  // Lane 0: all rows so far belong to what this signal tells.
  __device__ void signal(uint64_t* address) {
    flush();
    if (stored)
      pending = address;
    else
      give(address);
    stored = false;
    stores_since = 0;
  }

  // Lane 0.
  __device__ void flush() {
    if (pending == nullptr) return;
    ptx::bulk_wait<0>();
    give(pending);
    pending = nullptr;
  }

 private:
  __device__ void send(char* destination, const char* source, uint32_t bytes) {
    ptx::bulk_store(destination, source, bytes);
    ptx::bulk_commit();
    stored = true;
    if (pending != nullptr && ++stores_since == kStoresBeforeSignal) {
      ptx::bulk_wait<kStoresBeforeSignal>();
      give(pending);
      pending = nullptr;
    }
  }

  __device__ static void wait_read(int newer_stores) {
    static_assert(kMaxStoreStages == 4);
    switch (newer_stores) {
      case 0: return ptx::bulk_wait_read<0>();
      case 1: return ptx::bulk_wait_read<1>();
      case 2: return ptx::bulk_wait_read<2>();
      default: return ptx::bulk_wait_read<3>();
    }
  }

  // The last warp to come to a signal gives it.
  __device__ void give(uint64_t* address) {
    uint32_t* arrivals = &memory.signal_arrivals[signals++ % kSignalSlots];
    if (ptx::atomic_add_acq_rel_cta(arrivals, 1) + 1 < kReducerWarps) return;
    *arrivals = 0;
    ptx::st_release_sys(address, epoch);
  }
};

// Calls body(i, vector) for the lane's vectors of a slice. Instruction issue bounds the reducers, so
// slices that are whole are not asked for their end.
template <bool kWhole, typename Body>
__device__ void for_each_vector(uint32_t vectors, Body body) {
#pragma unroll
  for (int i = 0; i < kVectorsPerLane; ++i) {
    const uint32_t vector = i * kWarpSize + lane_index();
    if (kWhole || vector < vectors) body(i, vector);
  }
}

template <bool kWhole>
__device__ void add_row(Bfloat16x8 (&sum)[kVectorsPerLane], const uint4* row, uint32_t vectors,
                        const Contribution& item) {
  if (item.flags & kNothing)
    for_each_vector<kWhole>(vectors, [&](int i, uint32_t) { sum[i].clear(); });
  else if (item.flags & kFirst)
    for_each_vector<kWhole>(
        vectors, [&](int i, uint32_t vector) { sum[i].assign(row[vector], item.weight); });
  else
    for_each_vector<kWhole>(vectors,
                            [&](int i, uint32_t vector) { sum[i].add(row[vector], item.weight); });
}

__device__ inline void reduce(const PipelineMemory& memory, int reducer, uint64_t epoch) {
  constexpr uint32_t kWholeSlice = kVectorsPerLane * kWarpSize;
  const Ring<Contribution>& ring = memory.ring;
  const int lane = lane_index();
  const uint32_t slice = reducer * kSliceBytes;
  Outgoing outgoing(memory, epoch, reducer);
  Bfloat16x8 sum[kVectorsPerLane];

  for (Cursor cursor;; cursor.advance(ring.depth)) {
    wait_phase(&ring.full[cursor.stage], cursor.parity);
    const Contribution item = ring.items[cursor.stage];
    if (item.flags & kEnd) break;
    const uint4* row = reinterpret_cast<const uint4*>(ring.stage(cursor.stage) + slice);
    const uint32_t bytes = item.bytes > slice ? min(item.bytes - slice, kSliceBytes) : 0;
    const uint32_t vectors = bytes / sizeof(uint4);

    if (vectors == kWholeSlice)
      add_row<true>(sum, row, vectors, item);
    else
      add_row<false>(sum, row, vectors, item);
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(&ring.empty[cursor.stage]);
    if ((item.flags & kLast) && bytes > 0) {
      uint4* buffer = outgoing.buffer();
      for_each_vector<false>(vectors,
                             [&](int i, uint32_t vector) { buffer[vector] = sum[i].round(); });
      outgoing.send_buffer(item.destination + slice, bytes);
    }
    if (item.signal != nullptr && lane == 0) outgoing.signal(item.signal);
  }
  if (lane == 0) {
    outgoing.flush();
    ptx::bulk_wait<0>();
  }
}

// --------------------------------------------------------------------------------------- sender

// All lanes: a stage whose row is nothing becomes a row of zeros.
__device__ inline void clear_stage(char* stage, uint32_t bytes) {
  for (uint32_t i = lane_index(); i < bytes / sizeof(uint4); i += kWarpSize)
    reinterpret_cast<uint4*>(stage)[i] = make_uint4(0, 0, 0, 0);
  ptx::fence_proxy_async_shared();
  __syncwarp();
}

// Where no row is added to another, one warp sends them as they are, straight from the stages.
template <int kInFlight>
__device__ void send_rows(const Ring<Contribution>& ring, uint64_t epoch) {
  const bool leader = lane_index() == 0;
  DelayedRelease<kInFlight> release;
  uint64_t* pending = nullptr;  // a signal that waits for rows on their way
  int stores_since = 0;
  for (Cursor cursor;; cursor.advance(ring.depth)) {
    wait_phase(&ring.full[cursor.stage], cursor.parity);
    const Contribution item = ring.items[cursor.stage];
    if (pending != nullptr &&
        (item.signal != nullptr || (item.flags & kEnd) || stores_since == kStoresBeforeSignal)) {
      if (leader) {
        if (stores_since == kStoresBeforeSignal)
          ptx::bulk_wait<kStoresBeforeSignal>();
        else
          ptx::bulk_wait<0>();
        ptx::st_release_sys(pending, epoch);
      }
      pending = nullptr;
    }
    if (item.flags & kEnd) break;

    char* stage = ring.stage(cursor.stage);
    if (item.flags & kNothing) clear_stage(stage, item.bytes);
    if (leader && item.bytes > 0) ptx::bulk_store(item.destination, stage, item.bytes);
    ptx::bulk_commit();
    release.stored(ring);
    ++stores_since;
    if (item.signal != nullptr) {
      pending = item.signal;
      stores_since = 0;
    }
  }
  ptx::bulk_wait<0>();
}

}  // namespace hep
