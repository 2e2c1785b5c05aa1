// SPDX-License-Identifier: Apache-2.0
// The reducers of combine: each warp owns a slice of the row, adds the rows in registers as they land,
// with no barrier among warps, and sends its slice of the sum.
#pragma once

#include "cuda/kernels/bfloat16.cuh"
#include "cuda/kernels/contribution.cuh"

namespace hep {

// A signal is given when this many later sums have been sent, or nothing more is to send.
constexpr int kStoresBeforeSignal = 2;

// A reducer warp's own bookkeeping of its stores: which buffer is next, and which signal waits for
// them. A signal is given after later sums have been sent, so that the warp seldom waits for the wire.
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

  // Lane 0: all sums so far belong to what this signal tells.
  __device__ void signal(uint64_t* address) {
    flush();
    if (address == nullptr) return;
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
    stored = false;
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

// A reducer warp's place in the ring.
struct Incoming {
  const Ring<Contribution>& ring;
  Cursor cursor;

  __device__ Contribution wait() const {
    wait_phase(&ring.full[cursor.stage], cursor.parity);
    return ring.items[cursor.stage];
  }

  __device__ const uint4* row(uint32_t slice) const {
    return reinterpret_cast<const uint4*>(ring.stage(cursor.stage) + slice);
  }

  // All lanes: they have read the stage and its item.
  __device__ void release() {
    __syncwarp();
    if (lane_index() == 0) ptx::mbarrier_arrive(&ring.empty[cursor.stage]);
    cursor.advance(ring.depth);
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

// From the first contribution, which has arrived, to the last: one loop for a sum, so that the sums
// stay in their registers.
template <bool kWhole>
__device__ void reduce_sum(Incoming& incoming, Contribution item, Outgoing& outgoing,
                           uint32_t slice, uint32_t bytes) {
  const uint32_t vectors = bytes / sizeof(uint4);
  Bfloat16x8 sum[kVectorsPerLane];
  const uint4* row = incoming.row(slice);
  if (item.flags & kNothing)
    for_each_vector<kWhole>(vectors, [&](int i, uint32_t) { sum[i].clear(); });
  else
    for_each_vector<kWhole>(
        vectors, [&](int i, uint32_t vector) { sum[i].assign(row[vector], item.weight); });
  incoming.release();

  while (!(item.flags & kLast)) {
    item = incoming.wait();
    row = incoming.row(slice);
    if (item.flags & kNothing)
      for_each_vector<kWhole>(vectors, [&](int i, uint32_t) { sum[i].add_zero(); });
    else
      for_each_vector<kWhole>(
          vectors, [&](int i, uint32_t vector) { sum[i].add(row[vector], item.weight); });
    incoming.release();
  }

  if (bytes == 0) return;
  uint4* buffer = outgoing.buffer();
  for_each_vector<kWhole>(vectors,
                          [&](int i, uint32_t vector) { buffer[vector] = sum[i].round(); });
  outgoing.send_buffer(static_cast<char*>(item.target) + slice, bytes);
}

__device__ inline void reduce(const PipelineMemory& memory, int reducer, uint64_t epoch) {
  const uint32_t slice = reducer * kSliceBytes;
  Outgoing outgoing(memory, epoch, reducer);
  Incoming incoming{memory.reducing, {}};
  while (true) {
    const Contribution item = incoming.wait();
    if (item.flags & kEnd) break;
    if (item.flags & kSignal) {
      incoming.release();
      if (lane_index() == 0) outgoing.signal(static_cast<uint64_t*>(item.target));
      continue;
    }
    const uint32_t bytes = item.bytes > slice ? min(item.bytes - slice, kSliceBytes) : 0;
    if (bytes == kSliceBytes)
      reduce_sum<true>(incoming, item, outgoing, slice, bytes);
    else
      reduce_sum<false>(incoming, item, outgoing, slice, bytes);
  }
  if (lane_index() == 0) {
    outgoing.flush();
    ptx::bulk_wait<0>();
  }
}

}  // namespace hep
