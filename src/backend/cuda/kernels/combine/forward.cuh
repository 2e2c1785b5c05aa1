// SPDX-License-Identifier: Apache-2.0
// The forwarder of combine: where no row is added to another, one warp sends the rows as they are,
// straight from the stages.
#pragma once

#include "backend/cuda/kernels/combine/contribution.cuh"

namespace hep::combine {

// A signal is given when this many later rows have been sent, or nothing more is to send.
constexpr int kCopiesBeforeSignal = 2;

// All lanes: a stage whose row is nothing becomes a row of zeros.
__device__ inline void clear_stage(char* stage, uint32_t bytes) {
  for (uint32_t i = warp_lane(); i < bytes / sizeof(uint4); i += kWarpSize)
    reinterpret_cast<uint4*>(stage)[i] = make_uint4(0, 0, 0, 0);
  ptx::fence_proxy_async_shared();
  __syncwarp();
}

template <int kInFlight>
__device__ void forward_rows(const Ring<Contribution>& ring, uint64_t epoch) {
  const bool leader = warp_lane() == 0;
  DelayedRelease<kInFlight> release;
  bool is_pending = false;      // signals wait for rows on their way:
  uint64_t* pending = nullptr;  // the lane's
  int copies_since = 0;
  for (Cursor cursor;; cursor.advance(ring.depth)) {
    wait_phase(&ring.full[cursor.stage], cursor.parity);
    const Contribution item = ring.items[cursor.stage];
    const bool is_row = (item.flags & (kSignal | kEnd)) == 0;
    if (is_pending && (!is_row || copies_since == kCopiesBeforeSignal)) {
      if (leader && is_row)
        ptx::bulk_wait<kCopiesBeforeSignal>();
      else if (leader)
        ptx::bulk_wait<0>();
      __syncwarp();
      if (pending != nullptr) ptx::st_release_sys(pending, epoch);
      is_pending = false;
    }
    if (item.flags & kEnd) break;

    char* stage = ring.stage(cursor.stage);
    if (is_row && (item.flags & kNothing)) clear_stage(stage, item.bytes);
    if (is_row && leader) ptx::bulk_store(item.target, stage, item.bytes);
    ptx::bulk_commit();
    if (!is_row) pending = signalled_by_warp_lane(item, stage);
    release.stored(ring);
    ++copies_since;
    if (!is_row) {
      is_pending = true;
      copies_since = 0;
    }
  }
  ptx::bulk_wait<0>();
}

// The ring is deeper than `store_stages`.
__device__ inline void forward(const Ring<Contribution>& ring, int store_stages, uint64_t epoch) {
  static_assert(kMaxStoreStages == 4);
  switch (store_stages) {
    case 1: return forward_rows<1>(ring, epoch);
    case 2: return forward_rows<2>(ring, epoch);
    case 3: return forward_rows<3>(ring, epoch);
    default: return forward_rows<4>(ring, epoch);
  }
}

}  // namespace hep::combine
