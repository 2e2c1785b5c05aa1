// SPDX-License-Identifier: Apache-2.0
// The reducers of combine: each warp owns a slice of the row, adds the rows in registers as they
// land, with no barrier among warps, and stores its slice of the sum straight from there, also to a
// peer: through shared memory and the copy engine it would take a quarter of the bandwidth of both.
#pragma once

#include <type_traits>

#include "backend/cuda/kernels/combine/contribution.cuh"
#include "backend/cuda/kernels/common/bit_cast.cuh"
#include "backend/cuda/kernels/common/numbers.cuh"

namespace hep::combine {

// A reducer warp's place in the ring.
struct Incoming {
  const Ring<Contribution>& ring;
  Cursor cursor;

  __device__ Contribution wait() const {
    wait_phase(&ring.full[cursor.stage], cursor.parity);
    const uint4 item = ptx::ld_shared(&ring.items[cursor.stage]);
    return bit_cast<Contribution>(item);
  }

  __device__ const char* row(uint32_t slice) const { return ring.stage(cursor.stage) + slice; }

  // All lanes: they have read the stage and its item. The copy engine may write the stage as soon
  // as it is handed back. It is another proxy than loads, so an arrival alone does not order its
  // write behind these reads.
  __device__ void release() {
    ptx::fence_proxy_async_shared();
    __syncwarp();
    if (warp_lane() < kArrivingWarpLanes) ptx::mbarrier_arrive(&ring.empty[cursor.stage]);
    cursor.advance(ring.depth);
  }
};

// Calls body(i, vector) for the lane's vectors of a slice. Instruction issue bounds the reducers,
// so slices that are whole are not asked for their end.
template <bool kWhole, typename Body>
__device__ void for_each_vector(uint32_t vectors, Body body) {
#pragma unroll
  for (int i = 0; i < kVectorsPerLane; ++i) {
    const uint32_t vector = i * kWarpSize + warp_lane();
    if (kWhole || vector < vectors) body(i, vector);
  }
}

// A reducer warp's slice of a sum, at work. The sums stay in registers: everything is inlined.
template <typename In, typename Out, bool kWhole>
struct SliceReducer {
  using Sum = VectorSum<In>[kVectorsPerLane];
  // Only these may come among the parts of a sum, whose type is theirs.
  static constexpr bool kMayOwn = std::is_same_v<In, Out>;

  Incoming& incoming;
  uint32_t slice, vectors;

  struct Slice {
    uint4 vectors[kVectorsPerLane];
  };

  // The lane's vectors of the stage, which goes back before they are added: the loader is waiting
  // for it. (With the next row read before this one is added, a combine of expert-major rows of
  // 7168 elements on an H200 takes 20 % more.) Whatever was there if the stage holds nothing.
  __device__ Slice take_row() {
    Slice taken{};
    const char* row = incoming.row(slice);
    for_each_vector<kWhole>(vectors, [&](int i, uint32_t vector) {
      taken.vectors[i] = ptx::ld_shared(row + vector * sizeof(uint4));
    });
    incoming.release();
    return taken;
  }

  __device__ void begin(const Contribution& item, Sum& sum) {
    const Slice row = take_row();
    if (item.flags & kNothing)
      for_each_vector<kWhole>(vectors, [&](int i, uint32_t) { sum[i].clear(); });
    else
      for_each_vector<kWhole>(vectors,
                              [&](int i, uint32_t) { sum[i].assign(row.vectors[i], item.weight); });
  }

  __device__ void add(const Contribution& item, Sum& sum) {
    const Slice row = take_row();
    if (item.flags & kNothing)
      for_each_vector<kWhole>(vectors, [&](int i, uint32_t) { sum[i].add_zero(); });
    else
      for_each_vector<kWhole>(vectors,
                              [&](int i, uint32_t) { sum[i].add(row.vectors[i], item.weight); });
  }

  // From the first of this rank's own outputs to the last; `item` becomes that.
  __device__ void sum_own(Contribution& item, Sum& sum) {
    begin(item, sum);
    while (!(item.flags & kEndsPartial)) {
      item = incoming.wait();
      add(item, sum);
    }
    for_each_vector<kWhole>(vectors, [&](int i, uint32_t) { sum[i].round(); });
  }

  // From the first contribution, which has arrived, to the last.
  __device__ void reduce(Contribution item) {
    Sum sum;
    if (kMayOwn && (item.flags & kOwn))
      sum_own(item, sum);
    else
      begin(item, sum);

    while (!(item.flags & kLast)) {
      item = incoming.wait();
      if (kMayOwn && (item.flags & kOwn)) {
        Sum own;
        sum_own(item, own);
        for_each_vector<kWhole>(vectors, [&](int i, uint32_t) { sum[i].add(own[i]); });
      } else {
        add(item, sum);
      }
    }

    char* target = static_cast<char*>(item.target) + scaled_bytes<In, Out>(slice);
    for_each_vector<kWhole>(vectors, [&](int i, uint32_t vector) {
      sum[i].template store<Out>(target + vector * scaled_bytes<In, Out>(sizeof(uint4)));
    });
  }
};

// The last reducer warp to come to a signal gives it: all have stored their slices by then. The
// warp waits until the peers have them, more than a microsecond, but the others go on. (A warp that
// did nothing but signal made combine 4 to 7 % slower on 4 H200s: its turn came late.)
struct SignalGiver {
  uint32_t* arrivals;  // [kSignalSlots] in shared memory
  uint32_t reducers;
  uint64_t epoch;
  int slot = 0;

  // By all lanes, once they have stored; each may have a word to signal.
  __device__ void arrive(uint64_t* word) {
    __syncwarp();
    bool last = false;
    if (warp_lane() == 0) {
      last = ptx::atomic_add_acq_rel_cta(&arrivals[slot], 1) == reducers - 1;
      if (last) ptx::atomic_exchange_relaxed_cta(&arrivals[slot], 0);
    }
    last = __any_sync(kFullWarp, last);
    __syncwarp();  // a vote does not order memory
    if (last && word != nullptr) ptx::st_release_sys(word, epoch);
    slot = (slot + 1) % kSignalSlots;
  }
};

// The warp's slice of a sum.
template <typename In, typename Out>
__device__ void reduce_slice(Incoming& incoming, const Contribution& item, uint32_t slice) {
  constexpr uint32_t kWholeSlice = kVectorsPerLane * kWarpSize;
  const uint32_t bytes = item.bytes > slice ? min(item.bytes - slice, kSliceBytes) : 0;
  const uint32_t vectors = bytes / sizeof(uint4);
  if (vectors == kWholeSlice)
    SliceReducer<In, Out, true>{incoming, slice, vectors}.reduce(item);
  else
    SliceReducer<In, Out, false>{incoming, slice, vectors}.reduce(item);
}

// Rows of Type become sums of Partial, and those, marked kPartials, sums of Type.
template <typename Type, typename Partial>
__device__ void reduce(const PipelineMemory& memory, WorkShare reducers, uint64_t epoch) {
  const uint32_t slice = reducers.index * kSliceBytes;
  Incoming incoming{memory.reducing, {}};
  SignalGiver signals{memory.signal_arrivals, static_cast<uint32_t>(reducers.count), epoch};
  while (true) {
    const Contribution item = incoming.wait();
    if (item.flags & kEnd) break;
    if (item.flags & kSignal) {
      uint64_t* const word = signalled_by_warp_lane(item, incoming.row(0));
      incoming.release();
      signals.arrive(word);
      continue;
    }
    if (!std::is_same_v<Type, Partial> && (item.flags & kPartials))
      reduce_slice<Partial, Type>(incoming, item, slice);
    else
      reduce_slice<Type, Partial>(incoming, item, slice);
  }
}

}  // namespace hep::combine
