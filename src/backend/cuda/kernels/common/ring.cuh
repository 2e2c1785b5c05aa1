// SPDX-License-Identifier: Apache-2.0
// A ring of shared-memory stages between one producer and one group of consumers. The producer
// fills a stage by bulk loads and describes it by an item; the consumers hand it back when they
// have read it. A ring has one group of consumers: two could wait two phases apart and deadlock.
#pragma once

#include <cstdio>

#include "backend/cuda/blocks/common.h"
#include "backend/cuda/kernels/common/ptx.cuh"
#include "backend/cuda/kernels/common/warp.cuh"

namespace hep {

// Lanes of a warp that arrive when it hands a stage back. After a __syncwarp() one is enough; but
// the racecheck tool does not follow that, and takes what the others have read for races. A build
// for it has all of them arrive.
#ifndef HEP_ARRIVING_LANES
#define HEP_ARRIVING_LANES 1
#endif
constexpr int kArrivingWarpLanes = HEP_ARRIVING_LANES;

template <typename Item>
struct Ring {
  char* stages;
  uint64_t* full;   // [depth]
  uint64_t* empty;  // [depth]
  Item* items;      // [depth]
  int depth;
  int stage_bytes;

  // `memory` for the stages is aligned to kStageAlignment, `control` for barriers and items to 16.
  __device__ Ring(char* memory, char* control, int ring_depth, int bytes_per_stage)
      : stages(memory),
        full(reinterpret_cast<uint64_t*>(control)),
        empty(full + ring_depth),
        items(reinterpret_cast<Item*>(empty + ring_depth)),
        depth(ring_depth),
        stage_bytes(bytes_per_stage) {}

  __host__ __device__ static constexpr int control_bytes(int depth) {
    static_assert(sizeof(Item) % 16 == 0);
    return ring_control_bytes(depth, sizeof(Item));
  }
  __device__ char* end() const { return reinterpret_cast<char*>(full) + control_bytes(depth); }

  // By as many warps as can be spared, before a barrier of the block. The lanes of one warp would
  // take turns, some 50 cycles each: an instruction on a barrier takes one address for all. (Done
  // by one warp, it made a low-latency combine on 2 H200s up to 1.2 us longer.)
  __device__ void initialize(int num_consumers, WorkShare warps) const {
    if (warp_lane() != 0) return;
#pragma unroll 1
    for (int i = warps.index; i < depth; i += warps.count) {
      ptx::mbarrier_init(&full[i], 1);
      ptx::mbarrier_init(&empty[i], num_consumers);
    }
    ptx::fence_mbarrier_init();
  }

  __device__ char* stage(int index) const {
    return stages + static_cast<size_t>(index) * stage_bytes;
  }
};

// A position in a ring: which stage, in which round.
struct Cursor {
  int stage = 0;
  uint32_t parity = 0;

  __device__ void advance(int depth) {
    if (++stage == depth) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Seconds after which a wait of a block for itself ends the kernel, in builds for debugging; 0:
// never. The block waits for itself while it waits for a peer, so this must exceed timeout_ms.
#ifndef HEP_DEBUG_WAIT_SECONDS
#define HEP_DEBUG_WAIT_SECONDS 0
#endif
constexpr uint64_t kDebugWaitNs = HEP_DEBUG_WAIT_SECONDS * uint64_t{1000000000};

// Ends the kernel if the phase has not completed in time, and says where.
__device__ inline void wait_phase_or_trap(uint64_t* barrier, uint32_t parity, uint64_t most_ns) {
  const uint64_t begin = ptx::globaltimer_ns();
  while (!ptx::mbarrier_try_wait(barrier, parity)) {
    if (ptx::globaltimer_ns() - begin <= most_ns) continue;
    printf(
        "hybridep: block %u, warp %d, lane %d has waited %llu ms for the phase of parity %u of the "
        "barrier at 0x%x of shared memory\n",
        blockIdx.x, warp_index(), warp_lane(), static_cast<unsigned long long>(most_ns / 1000000),
        parity, ptx::shared_address(barrier));
    __trap();
  }
}

// Waits that end because copies of this block end and its warps go on: they need no bound.
__device__ inline void wait_phase(uint64_t* barrier, uint32_t parity) {
  if constexpr (kDebugWaitNs > 0) {
    wait_phase_or_trap(barrier, parity, kDebugWaitNs);
  } else {
    while (!ptx::mbarrier_try_wait(barrier, parity)) {
    }
  }
}

// The producer's side, one stage after the other. The cursors of all lanes keep pace.
template <typename Item>
struct Producer {
  const Ring<Item>& ring;
  Cursor cursor;

  // Until the next stage is free. By every lane that loads into it.
  __device__ void wait() const { wait_phase(&ring.empty[cursor.stage], cursor.parity ^ 1); }

  // Waits for a free stage and describes it; `bytes` are going to be loaded into it. By one lane.
  __device__ void acquire(const Item& item, uint32_t bytes) {
    wait();
    describe(item, bytes);
  }

  // The same when it has waited.
  __device__ void describe(const Item& item, uint32_t bytes) {
    ring.items[cursor.stage] = item;
    if (bytes > 0)
      ptx::mbarrier_arrive_expect_tx(&ring.full[cursor.stage], bytes);
    else
      ptx::mbarrier_arrive(&ring.full[cursor.stage]);
  }

  __device__ void load(int offset, const void* global, uint32_t bytes) {
    ptx::bulk_load(ring.stage(cursor.stage) + offset, global, bytes, &ring.full[cursor.stage]);
  }

  __device__ void advance() { cursor.advance(ring.depth); }
};

// The producer's side, used by a warp: each lane fills a stage of its own.
template <typename Item>
struct WarpProducer {
  const Ring<Item>& ring;
  Cursor cursor;

  // Until the next stage is free. By every lane that writes it.
  __device__ void wait() const { wait_phase(&ring.empty[cursor.stage], cursor.parity ^ 1); }

  // The lanes of `active`, in their order, each describe a stage and load `bytes` into it, 0:
  // nothing. By all lanes. One after the other: instructions on barriers, and those of the copy
  // engine, take one address for all lanes, so that the first row would wait for the barriers of
  // all. (On 2 H200s, expert-major rows of 7168 elements are combined 2 to 3 % faster than with
  // lanes that go on together as stages become free.)
  __device__ void load(uint32_t active, const Item& item, const void* global, uint32_t bytes) {
    load(active, item, bytes,
         [&](char* stage, uint64_t* full) { ptx::bulk_load(stage, global, bytes, full); });
  }

  // The same where copy() loads the bytes into the stage.
  template <typename Copy>
  __device__ void load(uint32_t active, const Item& item, uint32_t bytes, Copy copy) {
    for (; active != 0; active &= active - 1, cursor.advance(ring.depth)) {
      wait();
      if (warp_lane() == __ffs(active) - 1) fill(item, bytes, copy);
      __syncwarp();
    }
  }

 private:
  template <typename Copy>
  __device__ void fill(const Item& item, uint32_t bytes, Copy copy) const {
    uint64_t* full = &ring.full[cursor.stage];
    ring.items[cursor.stage] = item;
    if (bytes == 0) {
      ptx::mbarrier_arrive(full);
      return;
    }
    ptx::mbarrier_arrive_expect_tx(full, bytes);
    copy(ring.stage(cursor.stage), full);
  }
};

// The side of a consumer, one warp, that stores straight from stages: a stage goes back when the
// stores of kInFlight later ones have been committed, so that reading it overlaps with waiting for
// the next. The ring is deeper than kInFlight.
template <int kInFlight>
struct DelayedRelease {
  Cursor oldest;
  int in_flight = 0;

  // By all lanes, each of which has committed its stores from the next stage, or nothing.
  template <typename Item>
  __device__ void stored(const Ring<Item>& ring) {
    if (in_flight < kInFlight) {
      ++in_flight;
      return;
    }
    ptx::bulk_wait_read<kInFlight>();
    __syncwarp();
    if (warp_lane() < kArrivingWarpLanes) ptx::mbarrier_arrive(&ring.empty[oldest.stage]);
    oldest.advance(ring.depth);
  }
};

}  // namespace hep
