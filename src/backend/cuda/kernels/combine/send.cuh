// SPDX-License-Identifier: Apache-2.0
// The first half of combine: this rank's rows for the tokens of its peers.
#pragma once

#include "backend/cuda/kernels/combine/contribution.cuh"
#include "backend/cuda/kernels/combine/rows.cuh"
#include "backend/cuda/kernels/common/bit_cast.cuh"
#include "backend/cuda/kernels/common/routing_view.cuh"
#include "backend/cuda/kernels/common/wait.cuh"
#include "protocol/at.h"
#include "protocol/records.h"
#include "protocol/shape.h"

namespace hep::combine {

// Waits until no source reads the partials of the last combine any more, unless combines take turns
// with two sets of slots: a peer that has told of the combine before this one has done with the one
// before that.
__device__ inline bool wait_for_slots(const CombineArgs& args, uint64_t epoch) {
  const KernelContext& context = args.context;
  if (context.shape().sets == 2) return true;
  bool free = true;
  for (int rank = warp_lane(); rank < context.num_ranks(); rank += kWarpSize)
    free &= wait_for(context, {hepOperationCombine, hepPhaseSlots, rank, epoch},
                     &context.signals_from(rank)->slots_free, epoch - 1);
  const bool all_free = __all_sync(kFullWarp, free);
  __syncwarp();  // a vote does not order memory
  return all_free;
}

// This rank's rows for the tokens of `num_rows` records of one source, at most as many as a warp
// has lanes.
template <typename V>
__device__ void load_records(const CombineArgs& args, uint64_t epoch, int source, uint32_t begin,
                             int num_rows, ContributionLoader& loader) {
  const KernelContext& context = args.context;
  void* window = context.windows[source];
  uint4 record = make_uint4(0, 0, 0, 0);
  if (warp_lane() < num_rows) record = routing_of(args).row_words()[begin + warp_lane()];
  const EntryItems outputs(warp_lane() < num_rows ? rows_of<V>(args, bit_cast<Row>(record)) : 0);
  for (int first = 0, last; first < num_rows; first = last) {
    last = outputs.end_of_batch(first, 1, num_rows);
    const EntryItems::Batch items = outputs.batch(first, last);
    const Row row = row_of_warp_lane(record, items.entry);
    OutputRow output{nullptr, 0.0f};
    if (items.siblings != 0) output = find_output<V>(args, row, begin + items.entry, items.index);
    const uint32_t active = contributing_warp_lanes(items, output.address);
    const bool ends_sum = (active & items.siblings & warp_lanes_above()) == 0;
    char* slot = at<char>(window, context.window_layout.partial_at(epoch, row.token, row.ordinal));
    load_sums<typename V::Type, typename V::Partial>(
        loader, args.row_bytes, args.plan.segment_bytes,
        {active, items.siblings, output.address, output.weight, slot,
         static_cast<uint16_t>(ends_sum ? kLast : 0)});
  }
}

// Those of one chunk of one source, to be summed or forwarded.
template <typename V>
__device__ void load_chunk(const CombineArgs& args, uint64_t epoch, int source, int chunk,
                           ContributionLoader& loader) {
  const KernelContext& context = args.context;
  const uint32_t* chunk_rows = routing_of(args).chunk_rows() +
                               static_cast<size_t>(source) * (context.shape().max_chunks() + 1) +
                               chunk;
  const uint32_t begin = chunk_rows[0], end = chunk_rows[1];
  for (uint32_t first = begin; first < end; first += kWarpSize)
    load_records<V>(args, epoch, source, first, min(end - first, kWarpSize), loader);
}

// Signals that the sources are to be given, one a lane.
struct PendingSignals {
  uint64_t* word = nullptr;
  int count = 0;

  __device__ void add(uint64_t* signal) {
    if (warp_lane() == count) word = signal;
    ++count;
  }
  __device__ void give(ContributionLoader& loader) {
    if (count > 0) loader.signal(word, count);
    count = 0;
  }
};

// Chunks are visited in ascending order, each GPU beginning with another source. A block keeps to
// one source if there are enough blocks and they divide evenly, as the plan for many tokens sees
// to: blocks that change theirs pile up at the slowest.
template <typename V>
__device__ void load_contributions(const CombineArgs& args, uint64_t epoch, int pipeline,
                                   ContributionLoader& loader) {
  const KernelContext& context = args.context;
  const int ranks = context.num_ranks();
  const int sources = V::kOwnInPlace ? ranks - 1 : ranks;
  const uint32_t* source_tokens = routing_of(args).source_tokens();
  if (sources == 0 || !wait_for_slots(args, epoch)) return;

  int most_chunks = 0;
  for (int i = 0; i < sources; ++i) {
    const int next = context.rank + 1 + i;
    const int tokens = source_tokens[next < ranks ? next : next - ranks];
    most_chunks = max(most_chunks, num_chunks(tokens, ranks));
  }
  const int num_tasks = most_chunks * sources;
  const int pipelines = args.plan.pipelines * args.plan.first_half_blocks;
  const int per_signal = chunks_per_signal(num_tasks, pipelines);
  const Divisor chunk_of(sources);
  PendingSignals pending;
  for (int task = pipeline * args.plan.first_half_blocks + blockIdx.x; task < num_tasks;
       task += pipelines) {
    const int chunk = chunk_of(task);
    const int next = context.rank + 1 + task - chunk * sources;
    const int source = next < ranks ? next : next - ranks;
    if (chunk >= num_chunks(source_tokens[source], ranks)) continue;
    load_chunk<V>(args, epoch, source, chunk, loader);
    pending.add(at<uint64_t>(context.windows[source],
                             context.window_layout.chunk_ready_at(chunk, context.rank)));
    if (pending.count == per_signal) pending.give(loader);
  }
  pending.give(loader);
}

}  // namespace hep::combine
