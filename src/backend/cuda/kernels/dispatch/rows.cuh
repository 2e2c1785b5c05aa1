// SPDX-License-Identifier: Apache-2.0
// How dispatch moves rows: a loader warp brings them from the sources' windows into a ring of
// stages, a storer warp writes each to its place or places.
#pragma once

#include "backend/cuda/blocks/dispatch.h"
#include "backend/cuda/kernel_args.h"
#include "backend/cuda/kernels/common/bit_cast.cuh"
#include "backend/cuda/kernels/common/ring.cuh"
#include "backend/cuda/kernels/common/routing_view.cuh"
#include "backend/cuda/kernels/common/warp.cuh"
#include "backend/cuda/kernels/dispatch/extras.cuh"
#include "backend/cuda/kernels/dispatch/gate.cuh"
#include "protocol/at.h"
#include "protocol/output_layout.h"
#include "protocol/records.h"
#include "protocol/shape.h"

namespace hep::dispatch {

// Rows that a loader takes at a time, consecutive rows of one source: as many as whole stages hold,
// but at least so many.
constexpr int kFewRowsPerGroup = 4;

static_assert(kMaxRowsPerStage + kFewRowsPerGroup <= kWarpSize);

// Stores that a storer has in flight before it hands the oldest one's stage back.
constexpr int kStoresInFlight = 4;

// A loader and a storer with stages of their own. A row takes each of the two warps some 0.3 us,
// longer than the copy engine takes for a small one: 8 blocks on 2 H200s moved rows of 2 KiB to
// their experts at 96 and 160 GB/s with two and four pipelines a block, of 4 KiB at 98, 183 and 191
// with one, two and four, of 7 KiB at 175 with one and 200; 16 blocks rows of 14 KiB, flat, at 580
// with one and 597.
struct Pipeline {
  int index, count;  // which of how many of the block

  __device__ int first_group() const { return index * gridDim.x + blockIdx.x; }
  __device__ int num_groups_at_once() const { return count * gridDim.x; }
};

// One by one if there would be too few groups for all pipelines.
__device__ inline int rows_per_group(const PipelineArgs& args, uint32_t num_rows,
                                     Pipeline pipeline) {
  if (num_rows < 2 * kFewRowsPerGroup * pipeline.num_groups_at_once())
    return args.plan.rows_per_stage;
  return args.plan.rows_per_stage * ceil_div(kFewRowsPerGroup, args.plan.rows_per_stage);
}

// Groups of rows in the order in which they are visited: the rows in a block's ring come from all
// sources in turn, and at any time all blocks of all GPUs read from all sources alike. So no source
// is everybody's target, and no block waits for a slow one while others pile up behind it.
struct GroupOrder {
  int rank, num_ranks;
  int rows;  // of a group
  Divisor by_ranks, by_groups_at_once;
  static_assert(kMaxTokens / kFewRowsPerGroup * kMaxRanks < Divisor::kLimit);

  __device__ GroupOrder(const KernelContext& context, int rows_of_group, Pipeline pipeline)
      : rank(context.rank),
        num_ranks(context.num_ranks()),
        rows(rows_of_group),
        by_ranks(num_ranks),
        by_groups_at_once(pipeline.num_groups_at_once()) {}

  __device__ int turn(int group) const { return by_ranks(group); }
  __device__ int source(int group, int turn) const {
    const int number = rank + 1 + (group - turn * num_ranks) + by_groups_at_once(turn * num_ranks);
    return number - by_ranks(number) * num_ranks;
  }
};

// By one lane.
__device__ inline void load_expert_row(const DispatchArgs& args, const Row& row, uint32_t index,
                                       const char* source_rows, Producer<RowItem>& producer) {
  const int row_bytes = args.rows.row_bytes;
  // 16-byte copies of 8-byte selections: from the even one at or before the first.
  const uint32_t first_even = row.first & ~1u;
  const uint32_t list_bytes =
      align_up((row.first + row.count - first_even) * sizeof(Selection), 16);
  producer.acquire({index, 1, row.first, row.count}, row_bytes + list_bytes);
  producer.load(0, source_rows + static_cast<uint64_t>(row.token) * row_bytes, row_bytes);
  producer.load(row_bytes, routing_of(args).selections() + first_even, list_bytes);
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
    return bit_cast<Row>(raw);
  }
};

__device__ inline RowGroup find_group(const DispatchArgs& args, const GroupOrder& order,
                                      const uint32_t* source_rows, int group) {
  const int turn = order.turn(group);
  const int source = order.source(group, turn);
  const int rows = order.rows;
  RowGroup found{source, source_rows[source] + turn * rows, source_rows[source + 1],
                 make_uint4(0, 0, 0, 0)};
  found.end = min(found.begin + rows, found.end);
  if (found.begin + warp_lane() < found.end)
    found.record = routing_of(args).row_words()[found.begin + warp_lane()];
  return found;
}

// By one lane.
__device__ inline void load_flat_row(const DispatchArgs& args, uint32_t token, uint32_t index,
                                     const char* source_rows, Producer<RowItem>& producer) {
  const int row_bytes = args.rows.row_bytes;
  producer.acquire({index, 1, 0, 0}, row_bytes);
  producer.load(0, source_rows + static_cast<uint64_t>(token) * row_bytes, row_bytes);
}

// Rows of one group from `begin` on into one stage; those of tokens that follow each other by one
// copy. By all lanes.
__device__ inline void load_flat_rows(const DispatchArgs& args, const RowGroup& group,
                                      uint32_t begin, uint32_t count, const char* source_rows,
                                      Producer<RowItem>& producer) {
  const int row_bytes = args.rows.row_bytes;
  const uint32_t lane = warp_lane();
  const uint32_t token = group.token(begin + lane);
  const uint32_t token_before = __shfl_up_sync(kFullWarp, token, 1);
  const bool begins = lane < count && (lane == 0 || token != token_before + 1);
  const uint32_t later = __ballot_sync(kFullWarp, begins) & warp_lanes_above();
  producer.wait();
  if (lane == 0) producer.describe({begin, count, 0, 0}, count * row_bytes);
  __syncwarp();
  if (begins) {
    const uint32_t run = (later != 0 ? __ffs(later) - 1 : count) - lane;
    producer.load(lane * row_bytes, source_rows + static_cast<uint64_t>(token) * row_bytes,
                  run * row_bytes);
  }
  producer.advance();
}

// Rows that are dropped need no load; in the expert layouts any of a row's places may be in range.
template <int kLayout>
__device__ void load_group(const PipelineArgs& args, const RowGroup& group, const char* source_rows,
                           Producer<RowItem>& producer) {
  if (kLayout != hepLayoutFlat) {
    for (uint32_t index = group.begin; index < group.end; ++index) {
      const Row row = group.row(index);
      if (warp_lane() == 0) load_expert_row(args, row, index, source_rows, producer);
      producer.advance();
    }
    return;
  }
  const int64_t end = min(int64_t{group.end}, args.call.capacity);
  if (args.plan.rows_per_stage == 1) {
    for (int64_t index = group.begin; index < end; ++index) {
      const uint32_t token = group.token(index);
      if (warp_lane() == 0) load_flat_row(args, token, index, source_rows, producer);
      producer.advance();
    }
    return;
  }
  for (int64_t index = group.begin; index < end; index += args.plan.rows_per_stage)
    load_flat_rows(args, group, index, min(int64_t{args.plan.rows_per_stage}, end - index),
                   source_rows, producer);
}

// The records of the next group are read while the rows of this one are loaded.
template <int kLayout>
__device__ void load_rows(const PipelineArgs& args, const SourceGate& gate,
                          const uint32_t* source_rows, Pipeline pipeline,
                          const Ring<RowItem>& ring) {
  const KernelContext& context = args.context;
  const GroupOrder order(context, rows_per_group(args, source_rows[context.num_ranks()], pipeline),
                         pipeline);
  Producer<RowItem> producer{ring, {}};

  uint32_t longest = 0;
  for (int source = 0; source < context.num_ranks(); ++source)
    longest = max(longest, source_rows[source + 1] - source_rows[source]);
  const int num_groups =
      args.call.capacity > 0 ? ceil_div(longest, order.rows) * context.num_ranks() : 0;

  const int first = pipeline.first_group(), stride = pipeline.num_groups_at_once();
  RowGroup next{};
  if (first < num_groups) next = find_group(args, order, source_rows, first);
  for (int group = first; group < num_groups; group += stride) {
    const RowGroup current = next;
    if (group + stride < num_groups) next = find_group(args, order, source_rows, group + stride);
    if (current.begin >= current.end) continue;
    const char* rows = gate.rows_of(current.source);
    if (rows == nullptr) break;
    load_group<kLayout>(args, current, rows, producer);
  }
  if (warp_lane() == 0) producer.acquire({kEnd, 0, 0, 0}, 0);
}

// Where the lane's copy of a row goes, in flat that of the first lane alone, in the expert layouts
// one for each of its selections; kDropped if there is none.
template <int kLayout>
__device__ int64_t place_of_copy(const DispatchArgs& args, const ExpertBlocks& experts,
                                 uint32_t row, const Selection* selections,
                                 uint32_t num_selections) {
  if (kLayout == hepLayoutFlat)
    return warp_lane() == 0 && row < args.call.capacity ? int64_t{row} : kDropped;
  if (warp_lane() >= num_selections) return kDropped;
  return row_of_selection(kLayout, args.call.capacity, args.context.routing_layout.num_experts,
                          experts.offsets, selections[warp_lane()]);
}

__device__ inline char* row_at(const DispatchArgs& args, int64_t place) {
  return static_cast<char*>(args.call.rows) + place * args.rows.row_bytes;
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
        reinterpret_cast<const Selection*>(stage + args.rows.row_bytes) + (item.first & 1);
    const int64_t place = place_of_copy<kLayout>(args, experts, item.row, selections, item.count);
    if (place != kDropped)
      ptx::bulk_store(row_at(args, place), stage, item.num_rows * args.rows.row_bytes);
    ptx::bulk_commit();
    release.stored(ring);
  }
  ptx::bulk_wait<0>();
  __syncwarp();
}

// The storer zeroes the padding rows from a stage that is no longer used.
__device__ inline void zero_padding(const DispatchArgs& args, const ExpertBlocks& experts,
                                    Pipeline pipeline, const Ring<RowItem>& ring) {
  const int row_bytes = args.rows.row_bytes;
  uint4* zeros = reinterpret_cast<uint4*>(ring.stage(0));
  for (int i = warp_lane(); i < row_bytes / static_cast<int>(sizeof(uint4)); i += kWarpSize)
    zeros[i] = make_uint4(0, 0, 0, 0);
  ptx::fence_proxy_async_shared();
  __syncwarp();
  for_each_padding(
      args, experts, pipeline.first_group(), pipeline.num_groups_at_once(), [&](int place) {
        if (place < args.call.capacity)
          ptx::bulk_store(
              static_cast<char*>(args.call.rows) + static_cast<int64_t>(place) * row_bytes, zeros,
              row_bytes);
      });
  ptx::bulk_commit();
  ptx::bulk_wait<0>();
}

}  // namespace hep::dispatch
