// SPDX-License-Identifier: Apache-2.0
// The first half of combine: this rank's rows for the tokens of its peers.
#pragma once

#include "cuda/kernels/combine_rows.cuh"
#include "cuda/kernels/contribution.cuh"
#include "cuda/kernels/signal.cuh"

namespace hep {

// Waits until no source reads the partials of the last combine any more.
__device__ inline bool wait_for_slots(const CombineArgs& args, uint64_t epoch) {
  const KernelContext& context = args.context;
  bool free = true;
  for (int rank = lane_index(); rank < context.num_ranks(); rank += kWarpSize)
    free &= wait_for(context, {hepOperationCombine, hepPhaseSlots, rank, epoch},
                     &context.signals_from(rank)->slots_free, epoch - 1);
  const bool all_free = __all_sync(kFullWarp, free);
  __syncwarp();  // a vote does not order memory
  return all_free;
}

// This rank's rows for the tokens of one chunk of one source, to be summed or forwarded; then the
// signal to the source.
template <typename V>
__device__ void load_chunk(const CombineArgs& args, int source, int chunk,
                           ContributionLoader& loader) {
  const KernelContext& context = args.context;
  const uint32_t* chunk_rows = at<uint32_t>(args.routing, context.routing_layout.chunk_rows) +
                               static_cast<size_t>(source) * (context.shape().max_chunks() + 1) +
                               chunk;
  const uint32_t begin = chunk_rows[0], end = chunk_rows[1];
  const int row_bytes = args.row_bytes;
  void* window = context.windows[source];

  static_assert(kChunkTokens <= kWarpSize);
  uint4 record = make_uint4(0, 0, 0, 0);
  if (begin + lane_index() < end)
    record = at<uint4>(args.routing, context.routing_layout.rows)[begin + lane_index()];
  const auto row_at = [&](uint32_t index) {
    uint4 raw;
    raw.x = __shfl_sync(kFullWarp, record.x, index - begin);
    raw.y = __shfl_sync(kFullWarp, record.y, index - begin);
    raw.z = __shfl_sync(kFullWarp, record.z, index - begin);
    return reinterpret_cast<const Row&>(raw);
  };

  // The next row is looked up before the current one waits for free stages.
  TokenRows next{};
  if (begin < end) next = find_rows<V>(args, row_at(begin));
  for (uint32_t index = begin; index < end; ++index) {
    const Row row = row_at(index);
    const TokenRows current = next;
    if (index + 1 < end) next = find_rows<V>(args, row_at(index + 1));
    const int64_t place = place_of_lane<V>(args, row, index, current);
    const float weight = weight_of<V>(args, row, current, place);
    load_sum<typename V::Type, typename V::Partial>(
        loader, row_bytes, __ballot_sync(kFullWarp, place != kDropped),
        static_cast<const char*>(args.call.y) + place * row_bytes, weight,
        at<char>(window, context.window_layout.partial_at(row.token, row.ordinal)), 0);
  }
  if (lane_index() == 0)
    loader.signal(at<uint64_t>(window, context.window_layout.chunk_ready_at(chunk, context.rank)));
}

// Chunks are visited in ascending order, each GPU beginning with another source. A block keeps to one
// source if there are enough blocks and they divide evenly, as the plan has seen to: blocks that change
// theirs pile up at the slowest. Where rows arrive as they are, this rank's own need not be sent.
template <typename V>
__device__ void load_contributions(const CombineArgs& args, uint64_t epoch, int pipeline,
                                   ContributionLoader& loader) {
  const KernelContext& context = args.context;
  const int ranks = context.num_ranks();
  const int sources = V::as_they_are(args) ? ranks - 1 : ranks;
  const uint32_t* source_tokens = at<uint32_t>(args.routing, context.routing_layout.source_tokens);
  if (sources == 0 || !wait_for_slots(args, epoch)) return;

  uint32_t most_tokens = 0;
  for (int source = 0; source < ranks; ++source)
    most_tokens = max(most_tokens, source_tokens[source]);
  const int num_tasks = ceil_div(most_tokens, kChunkTokens) * sources;
  for (int task = pipeline * args.first_half_blocks + blockIdx.x; task < num_tasks;
       task += kPipelines * args.first_half_blocks) {
    const int chunk = task / sources;
    const int source = (context.rank + 1 + task % sources) % ranks;
    if (chunk < ceil_div(source_tokens[source], kChunkTokens))
      load_chunk<V>(args, source, chunk, loader);
  }
}

}  // namespace hep
