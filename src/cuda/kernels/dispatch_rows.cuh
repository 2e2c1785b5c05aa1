// SPDX-License-Identifier: Apache-2.0
// How dispatch moves rows: a loader warp brings them from the sources' windows into a ring of stages, a
// storer warp writes each to its place or places.
#pragma once

#include "cuda/kernel_args.h"
#include "cuda/kernels/dispatch_extras.cuh"
#include "cuda/kernels/dispatch_signals.cuh"
#include "cuda/kernels/pipeline.cuh"
#include "cuda/kernels/warp.cuh"

namespace hep {

// Rows that a block takes at a time, consecutive rows of one source: as many as whole stages hold, but
// at least so many.
constexpr int kFewRowsPerGroup = 4;

// Flat rows of a source follow each other, and mostly come from tokens that follow each other: a stage
// holds several, for fewer copies. (On an H200, 14 KiB rows in four copies instead of one took a third
// longer.) So many stages must remain: on 4 H200s with 16 blocks, 5 stages of 2 rows gave 410 GB/s, 10 of
// 1 row 421.
constexpr int kStageTargetBytes = 28 * 1024;
constexpr int kMaxRowsPerStage = 16;
constexpr int kFewStages = 6;
static_assert(kMaxRowsPerStage + kFewRowsPerGroup <= kWarpSize);

// Stores that a storer has in flight before it hands the oldest one's stage back.
constexpr int kStoresInFlight = 4;

struct RowItem {
  uint32_t row;       // the first flat row, or kEnd
  uint32_t num_rows;  // in the expert layouts 1
  uint32_t first;     // of its selections
  uint32_t count;
};
constexpr uint32_t kEnd = 0xffffffffu;

// In the expert layouts a stage holds the row's selections, too, whose list the copy engine brings along;
// it may begin 8 bytes off a 16-byte boundary.
__device__ __host__ constexpr int selection_bytes(int layout, int top_k) {
  return layout != hepLayoutFlat ? static_cast<int>(align_up((top_k + 1) * sizeof(Selection), 16))
                                 : 0;
}

__device__ __host__ constexpr int stage_bytes(int layout, int rows, int row_bytes, int top_k) {
  return align_up(rows * row_bytes + selection_bytes(layout, top_k), kStageAlignment);
}

// One by one if there would be too few groups for all blocks.
__device__ inline int rows_per_group(const DispatchArgs& args, uint32_t num_rows) {
  if (num_rows < 2 * kFewRowsPerGroup * gridDim.x) return args.rows_per_stage;
  return args.rows_per_stage * ceil_div(kFewRowsPerGroup, args.rows_per_stage);
}

// Groups of rows in the order in which they are visited: the rows in a block's ring come from all
// sources in turn, and at any time all blocks of all GPUs read from all sources alike. So no source is
// everybody's target, and no block waits for a slow one while others pile up behind it.
struct GroupOrder {
  int rank, num_ranks;
  int rows;  // of a group

  __device__ int turn(int group) const { return group / num_ranks; }
  __device__ int source(int group) const {
    const int step = turn(group) * num_ranks / gridDim.x;
    return (rank + 1 + group % num_ranks + step) % num_ranks;
  }
};

// By one lane.
__device__ inline void load_expert_row(const DispatchArgs& args, const Row& row, uint32_t index,
                                       const char* source_rows, Producer<RowItem>& producer) {
  const int row_bytes = args.row_bytes;
  // 16-byte copies of 8-byte selections: from the even one at or before the first.
  const uint32_t first_even = row.first & ~1u;
  const uint32_t list_bytes =
      align_up((row.first + row.count - first_even) * sizeof(Selection), 16);
  producer.acquire({index, 1, row.first, row.count}, row_bytes + list_bytes);
  producer.load(0, source_rows + static_cast<uint64_t>(row.token) * row_bytes, row_bytes);
  producer.load(row_bytes,
                at<Selection>(args.routing, args.context.routing_layout.selections) + first_even,
                list_bytes);
  producer.advance();
}

// Rows that are moved one after the other: one record a lane, handed round by shuffles.
struct RowGroup {
  int source;
  uint32_t begin, end;  // none: begin >= end
  uint4 record;         // of the lane's row

  __device__ uint32_t token(uint32_t index) const {
    return __shfl_sync(kFullWarp, record.x, index - begin);
  }
  __device__ Row row(uint32_t index) const {
    uint4 raw;
    raw.x = __shfl_sync(kFullWarp, record.x, index - begin);
    raw.y = __shfl_sync(kFullWarp, record.y, index - begin);
    raw.z = __shfl_sync(kFullWarp, record.z, index - begin);
    raw.w = __shfl_sync(kFullWarp, record.w, index - begin);
    return reinterpret_cast<const Row&>(raw);
  }
};

__device__ inline RowGroup find_group(const DispatchArgs& args, const GroupOrder& order,
                                      const uint32_t* source_rows, int group) {
  const int source = order.source(group);
  const int rows = order.rows;
  RowGroup found{source, source_rows[source] + order.turn(group) * rows, source_rows[source + 1],
                 make_uint4(0, 0, 0, 0)};
  found.end = min(found.begin + rows, found.end);
  if (found.begin + lane_index() < found.end)
    found.record =
        at<uint4>(args.routing, args.context.routing_layout.rows)[found.begin + lane_index()];
  return found;
}

// By one lane.
__device__ inline void load_flat_row(const DispatchArgs& args, uint32_t token, uint32_t index,
                                     const char* source_rows, Producer<RowItem>& producer) {
  const int row_bytes = args.row_bytes;
  producer.acquire({index, 1, 0, 0}, row_bytes);
  producer.load(0, source_rows + static_cast<uint64_t>(token) * row_bytes, row_bytes);
  producer.advance();
}

// Rows of one group from `begin` on into one stage; those of tokens that follow each other by one copy.
// By all lanes.
__device__ inline void load_flat_rows(const DispatchArgs& args, const RowGroup& group,
                                      uint32_t begin, uint32_t count, const char* source_rows,
                                      Producer<RowItem>& producer) {
  const int row_bytes = args.row_bytes;
  if (lane_index() == 0) producer.acquire({begin, count, 0, 0}, count * row_bytes);
  for (uint32_t done = 0; done < count;) {
    const uint32_t token = group.token(begin + done);
    uint32_t run = 1;
    while (done + run < count && group.token(begin + done + run) == token + run) ++run;
    if (lane_index() == 0)
      producer.load(done * row_bytes, source_rows + static_cast<uint64_t>(token) * row_bytes,
                    run * row_bytes);
    done += run;
  }
  if (lane_index() == 0) producer.advance();
}

// Rows that are dropped need no load; in the expert layouts any of a row's places may be in range.
template <int kLayout>
__device__ void load_group(const DispatchArgs& args, const RowGroup& group, const char* source_rows,
                           Producer<RowItem>& producer) {
  if (kLayout != hepLayoutFlat) {
    for (uint32_t index = group.begin; index < group.end; ++index) {
      const Row row = group.row(index);
      if (lane_index() == 0) load_expert_row(args, row, index, source_rows, producer);
    }
    return;
  }
  const int64_t end = min(int64_t{group.end}, args.call.capacity);
  if (args.rows_per_stage == 1) {
    for (int64_t index = group.begin; index < end; ++index) {
      const uint32_t token = group.token(index);
      if (lane_index() == 0) load_flat_row(args, token, index, source_rows, producer);
    }
    return;
  }
  for (int64_t index = group.begin; index < end; index += args.rows_per_stage)
    load_flat_rows(args, group, index, min(int64_t{args.rows_per_stage}, end - index), source_rows,
                   producer);
}

// The records of the next group are read while the rows of this one are loaded.
template <int kLayout>
__device__ void load_rows(const DispatchArgs& args, const SourceGate& gate,
                          const uint32_t* source_rows, const Ring<RowItem>& ring) {
  const KernelContext& context = args.context;
  const GroupOrder order{context.rank, context.num_ranks(),
                         rows_per_group(args, source_rows[context.num_ranks()])};
  Producer<RowItem> producer{ring, {}};

  uint32_t longest = 0;
  for (int source = 0; source < context.num_ranks(); ++source)
    longest = max(longest, source_rows[source + 1] - source_rows[source]);
  const int num_groups =
      args.call.capacity > 0 ? ceil_div(longest, order.rows) * context.num_ranks() : 0;

  RowGroup next{};
  if (blockIdx.x < num_groups) next = find_group(args, order, source_rows, blockIdx.x);
  for (int group = blockIdx.x; group < num_groups; group += gridDim.x) {
    const RowGroup current = next;
    if (group + gridDim.x < num_groups)
      next = find_group(args, order, source_rows, group + gridDim.x);
    if (current.begin >= current.end) continue;
    const char* rows = gate.rows_of(current.source);
    if (rows == nullptr) break;
    load_group<kLayout>(args, current, rows, producer);
  }
  if (lane_index() == 0) producer.acquire({kEnd, 0, 0, 0}, 0);
}

// Where the lane's copy of a row goes, in flat that of the first lane alone, in the expert layouts one for
// each of its selections; NULL if there is none.
template <int kLayout>
__device__ char* destination(const DispatchArgs& args, const ExpertBlocks& experts, uint32_t row,
                             const Selection* selections, uint32_t num_selections) {
  int64_t place = kDropped;
  if (kLayout != hepLayoutFlat) {
    if (lane_index() < num_selections)
      place =
          row_of_selection(kLayout, args.call.capacity, experts.offsets, selections[lane_index()]);
  } else if (lane_index() == 0 && row < args.call.capacity) {
    place = row;
  }
  if (place == kDropped) return nullptr;
  return static_cast<char*>(args.call.rows) + place * args.row_bytes;
}

// One lane stores to each place.
template <int kLayout, int kInFlight>
__device__ void store_rows(const DispatchArgs& args, const ExpertBlocks& experts,
                           const Ring<RowItem>& ring) {
  DelayedRelease<kInFlight> release;
  for (Cursor cursor;; cursor.advance(ring.depth)) {
    wait_phase(&ring.full[cursor.stage], cursor.parity);
    const RowItem item = ring.items[cursor.stage];
    if (item.row == kEnd) break;
    const char* stage = ring.stage(cursor.stage);
    const auto* selections =
        reinterpret_cast<const Selection*>(stage + args.row_bytes) + (item.first & 1);
    char* place = destination<kLayout>(args, experts, item.row, selections, item.count);
    if (place != nullptr) ptx::bulk_store(place, stage, item.num_rows * args.row_bytes);
    ptx::bulk_commit();
    release.stored(ring);
  }
  ptx::bulk_wait<0>();
  __syncwarp();
}

// The storer zeroes the padding rows from a stage that is no longer used.
__device__ inline void zero_padding(const DispatchArgs& args, const ExpertBlocks& experts,
                                    const Ring<RowItem>& ring) {
  const int row_bytes = args.row_bytes;
  uint4* zeros = reinterpret_cast<uint4*>(ring.stage(0));
  for (int i = lane_index(); i < row_bytes / static_cast<int>(sizeof(uint4)); i += kWarpSize)
    zeros[i] = make_uint4(0, 0, 0, 0);
  ptx::fence_proxy_async_shared();
  __syncwarp();
  for_each_padding(args, experts, blockIdx.x, gridDim.x, [&](int place) {
    if (place < args.call.capacity)
      ptx::bulk_store(static_cast<char*>(args.call.rows) + static_cast<int64_t>(place) * row_bytes,
                      zeros, row_bytes);
  });
  ptx::bulk_commit();
  ptx::bulk_wait<0>();
}

}  // namespace hep
