// SPDX-License-Identifier: Apache-2.0
// The routing update that is part of a dispatch: every block counts the choices of all ranks, and makes
// the records of its share of the tokens. What it leaves is what the routing kernel leaves.
#pragma once

#include "cuda/kernels/choices.cuh"

namespace hep {

// Shared memory of a block. Counters are of classes of tokens: those before the block's share, those of each
// warp's part of it, and those after it.
struct PlaceMemory {
  Choices choices;
  Selection* sorted;      // [kPlacingWarps][kWarpSize]
  uint32_t* source_rows;  // [R] rows that go to this rank
  uint32_t* expert_base;  // [EL] places before each local expert's
  uint32_t* totals;       // [counters]
  uint32_t* by_class;     // [kPlacingWarps + 2][counters]
  uint32_t* end_of_counters;

  __device__ PlaceMemory(void* shared, uint8_t* has_weights, const Shape& shape) {
    choices.has_weights = has_weights;
    sorted = static_cast<Selection*>(shared);
    choices.first_tokens = reinterpret_cast<uint32_t*>(sorted + kPlacingWarps * kWarpSize);
    source_rows = choices.first_tokens + shape.num_ranks + 1;
    expert_base = source_rows + shape.num_ranks;
    totals = expert_base + shape.num_local_experts();
    by_class = totals + place_counters(shape);
    end_of_counters = by_class + (kPlacingWarps + 2) * place_counters(shape);
    choices.experts = reinterpret_cast<uint16_t*>(end_of_counters);
  }
};

// The counters of one class, or what is to be given out next.
struct PlaceCounters {
  uint32_t* by_expert;
  uint32_t* own_by_rank;
  uint32_t* rows;
  uint32_t* selections;

  __device__ PlaceCounters(uint32_t* memory, const Shape& shape)
      : by_expert(memory),
        own_by_rank(memory + shape.num_local_experts()),
        rows(own_by_rank + shape.num_ranks),
        selections(rows + 1) {}
};

// Which tokens a block and its warps make records of.
struct TokenShare {
  uint32_t of_warp;     // tokens of each warp
  uint32_t begin, end;  // of the block

  __device__ explicit TokenShare(uint32_t num_tokens) {
    const int warps = blockDim.x / kWarpSize;
    of_warp = ceil_div(num_tokens, gridDim.x * warps);
    begin = min(blockIdx.x * warps * of_warp, num_tokens);
    end = min(begin + warps * of_warp, num_tokens);
  }

  __device__ int class_of(uint32_t token) const {
    if (token < begin) return 0;
    return token < end ? 1 + (token - begin) / of_warp : 1 + blockDim.x / kWarpSize;
  }
};

// A lane's selection of the tokens at hand, and how it stands to others of its token.
struct LaneChoice {
  uint32_t token;  // counted over all ranks
  int expert;      // kNone: none
  int rank;        // that hosts it; kNone
  int source;

  __device__ LaneChoice(const DispatchArgs& args, const Choices& choices,
                        const SelectionLanes& lanes, RankOfExpert rank_of, uint32_t first,
                        uint32_t end)
      : token(first + lanes.group), expert(kNone), rank(kNone), source(kNone) {
    if (lanes.group >= lanes.groups || token >= end) return;
    source = source_of(choices, args.context.num_ranks(), token);
    const uint16_t chosen = choices.experts[token * args.top_k + lanes.index];
    if (chosen == kNoExpert) return;
    expert = chosen;
    rank = rank_of(chosen);
  }
};

// By all threads of a block: counts all tokens. Few atomics, because they bound it: one for each local
// selection, three for each token.
__device__ inline void count_choices(const DispatchArgs& args, const PlaceMemory& memory,
                                     const TokenShare& share) {
  const KernelContext& context = args.context;
  const Shape& shape = context.shape();
  const int local_base = context.rank * shape.num_local_experts();
  const SelectionLanes lanes(args.top_k);
  const RankOfExpert rank_of(shape);
  const uint32_t num_tokens = memory.choices.num_tokens(shape.num_ranks);
  const int warps = blockDim.x / kWarpSize;
  for (uint32_t first = warp_index() * lanes.groups; first < num_tokens;
       first += warps * lanes.groups) {
    const LaneChoice choice(args, memory.choices, lanes, rank_of, first, num_tokens);
    const PlaceCounters count(
        memory.by_class + share.class_of(choice.token) * place_counters(shape), shape);
    const uint32_t local = __ballot_sync(kFullWarp, choice.rank == context.rank) & lanes.of_group;
    if (choice.rank == context.rank) {
      atomicAdd(&count.by_expert[choice.expert - local_base], 1u);
      if ((local & lanes_below()) == 0) {
        atomicAdd(count.rows, 1u);
        atomicAdd(count.selections, __popc(local));
        atomicAdd(&memory.source_rows[choice.source], 1u);
      }
    }
    const bool own = choice.source == context.rank && choice.rank != kNone;
    if (!__any_sync(kFullWarp, own)) continue;
    const uint32_t same_rank = __match_any_sync(kFullWarp, own ? choice.rank : kNone);
    if (own && (same_rank & lanes.of_group & lanes_below()) == 0)
      atomicAdd(&count.own_by_rank[choice.rank], 1u);
  }
}

// Makes the counters of each class start where those before it end. By all threads of a block.
__device__ inline void sum_classes(const DispatchArgs& args, const PlaceMemory& memory) {
  const int counters = place_counters(args.context.shape());
  const int classes = blockDim.x / kWarpSize + 2;
  for (int i = threadIdx.x; i < counters; i += blockDim.x) {
    uint32_t sum = 0;
    for (int c = 0; c < classes; ++c) {
      uint32_t* counter = &memory.by_class[c * counters + i];
      const uint32_t count = *counter;
      *counter = sum;
      sum += count;
    }
    memory.totals[i] = sum;
  }
}

// One warp: where each local expert's rows begin.
__device__ inline void place_local_experts(const DispatchArgs& args, const PlaceMemory& memory) {
  const RoutingLayout& layout = args.context.routing_layout;
  const int local_experts = args.context.shape().num_local_experts();
  int32_t* tokens_per_expert = at<int32_t>(args.routing, layout.tokens_per_expert);
  int32_t* expert_offsets = at<int32_t>(args.routing, layout.expert_offsets);
  uint32_t end = 0;
  for (int base = 0; base < local_experts; base += kWarpSize) {
    const int e = base + lane_index();
    const uint32_t count = e < local_experts ? memory.totals[e] : 0;
    const uint32_t aligned = align_up(count, args.alignment);
    const uint32_t through = warp_inclusive_sum(aligned);
    if (e < local_experts) {
      memory.expert_base[e] = end + through - aligned;
      if (blockIdx.x == 0) {
        tokens_per_expert[e] = count;
        expert_offsets[e] = end + through - aligned;
      }
    }
    end += __shfl_sync(kFullWarp, through, kWarpSize - 1);
  }
  if (blockIdx.x == 0 && lane_index() == 0) expert_offsets[local_experts] = end;
}

// One warp: where the rows of each source begin, for this block; of one block also for what follows.
__device__ inline void place_all_sources(const DispatchArgs& args, const PlaceMemory& memory,
                                         uint32_t* first_rows) {
  const RoutingLayout& layout = args.context.routing_layout;
  const int ranks = args.context.num_ranks();
  uint32_t* source_tokens = at<uint32_t>(args.routing, layout.source_tokens);
  uint32_t* source_rows = at<uint32_t>(args.routing, layout.source_rows);
  uint32_t* chunk_rows = at<uint32_t>(args.routing, layout.chunk_rows);
  const int chunk_stride = args.context.shape().max_chunks() + 1;
  uint32_t rows = 0;
  for (int base = 0; base < ranks; base += kWarpSize) {
    const int source = base + lane_index();
    const bool valid = source < ranks;
    const uint32_t count = valid ? memory.source_rows[source] : 0;
    const uint32_t through = warp_inclusive_sum(count);
    if (valid) first_rows[source] = rows + through - count;
    if (valid && blockIdx.x == 0) {
      const int tokens =
          memory.choices.first_tokens[source + 1] - memory.choices.first_tokens[source];
      source_tokens[source] = tokens;
      source_rows[source] = rows + through - count;
      chunk_rows[source * chunk_stride + ceil_div(tokens, chunk_tokens(tokens))] = rows + through;
    }
    rows += __shfl_sync(kFullWarp, through, kWarpSize - 1);
  }
  if (lane_index() != 0) return;
  first_rows[ranks] = rows;
  if (blockIdx.x != 0) return;
  source_rows[ranks] = rows;
  RoutingTotals* totals = at<RoutingTotals>(args.routing, layout.totals);
  totals->num_flat_rows = rows;
  totals->num_expert_rows = *PlaceCounters(memory.totals, args.context.shape()).selections;
}

// Makes the records of the tokens from `first` on. `next` tells the next places to give out.
__device__ inline void make_records(const DispatchArgs& args, const PlaceMemory& memory,
                                    const SelectionLanes& lanes, RankOfExpert rank_of,
                                    uint32_t first, uint32_t end, const PlaceCounters& next,
                                    Selection* sorted) {
  const KernelContext& context = args.context;
  const RoutingLayout& layout = context.routing_layout;
  const int local_base = context.rank * context.shape().num_local_experts();
  const LaneChoice choice(args, memory.choices, lanes, rank_of, first, end);

  // Local selections get their places, in (token, k) order.
  const bool chose_local = choice.rank == context.rank;
  const uint32_t same_expert = __match_any_sync(kFullWarp, choice.expert);
  const int before = __popc(same_expert & lanes_below());
  const int expert = choice.expert - local_base;
  const uint32_t place =
      chose_local ? memory.expert_base[expert] + next.by_expert[expert] + before : 0;
  __syncwarp();
  if (chose_local && before == 0) next.by_expert[expert] += __popc(same_expert);
  Selection selection = sort_by_expert(lanes, args.top_k, choice.expert, place, sorted);

  // Now in ascending (expert, k) order of each token.
  const bool valid = lanes.group < lanes.groups && selection.expert != kNoExpert;
  const int rank = valid ? rank_of(selection.expert) : kNone;
  const uint32_t same_rank = __match_any_sync(kFullWarp, rank);
  const bool leads = valid && (same_rank & lanes.of_group & lanes_below()) == 0;
  const uint32_t leaders = __ballot_sync(kFullWarp, leads);
  const int ordinal = __popc(leaders & lanes.of_group & lanes_below());
  const bool in_range = lanes.group < lanes.groups && choice.token < end;
  const uint32_t token = in_range ? choice.token - memory.choices.first_tokens[choice.source] : 0;

  const uint32_t local = __ballot_sync(kFullWarp, rank == context.rank);
  const uint32_t local_rows = local & leaders;
  const uint32_t row_index = *next.rows + __popc(local_rows & lanes_below());
  const uint32_t number = *next.selections + __popc(local & lanes_below());
  if (rank == context.rank) {
    selection.expert -= local_base;
    reinterpret_cast<uint2*>(at<Selection>(args.routing, layout.selections))[number] =
        reinterpret_cast<const uint2&>(selection);
    if (leads) {
      const Row row{token,
                    number,
                    static_cast<uint16_t>(__popc(local & lanes.of_group)),
                    static_cast<uint16_t>(ordinal),
                    static_cast<uint16_t>(choice.source),
                    0};
      at<uint4>(args.routing, layout.rows)[row_index] = reinterpret_cast<const uint4&>(row);
    }
  }

  const bool of_token = in_range && lanes.index == 0;
  if (of_token) {
    const int tokens =
        memory.choices.first_tokens[choice.source + 1] - memory.choices.first_tokens[choice.source];
    const int of_chunk = chunk_tokens(tokens);
    if (token % of_chunk == 0)
      at<uint32_t>(args.routing,
                   layout.chunk_rows)[choice.source * (context.shape().max_chunks() + 1) +
                                      token / of_chunk] = row_index;
  }
  const bool own = in_range && choice.source == context.rank;
  const uint32_t own_leaders = __ballot_sync(kFullWarp, own && leads);
  if (own && leads) {
    const uint32_t index = next.own_by_rank[rank] + __popc(same_rank & own_leaders & lanes_below());
    at<SentRow>(args.routing,
                layout.sent_rows)[token * context.shape().max_partials() + ordinal] = {
        static_cast<uint16_t>(rank), static_cast<uint16_t>(index)};
  }
  if (own && of_token)
    at<uint8_t>(args.routing, layout.partial_counts)[token] = __popc(leaders & lanes.of_group);
  __syncwarp();
  if (own && leads) atomicAdd(&next.own_by_rank[rank], 1u);
  if (lane_index() == 0) {
    *next.rows += __popc(local_rows);
    *next.selections += __popc(local);
  }
  __syncwarp();
}

// The update, from choices to records, by all threads of all blocks, which make them for each other. Also
// tells where the rows of each source begin, and which gave weights. False after a failure.
__device__ inline bool place_choices(const DispatchArgs& args, uint64_t epoch, void* shared,
                                     uint32_t* first_rows, uint8_t* has_weights) {
  const Shape& shape = args.context.shape();
  const PlaceMemory memory(shared, has_weights, shape);
  for (uint32_t* word = memory.source_rows + threadIdx.x; word < memory.end_of_counters;
       word += blockDim.x)
    *word = 0;
  if (!gather_choices(args, epoch, memory.choices)) return false;

  const TokenShare share(memory.choices.num_tokens(shape.num_ranks));
  count_choices(args, memory, share);
  __syncthreads();
  sum_classes(args, memory);
  __syncthreads();
  if (warp_index() == 0) place_local_experts(args, memory);
  if (warp_index() == 1) place_all_sources(args, memory, first_rows);
  __syncthreads();

  const SelectionLanes lanes(args.top_k);
  const PlaceCounters next(memory.by_class + (1 + warp_index()) * place_counters(shape), shape);
  const uint32_t begin = min(share.begin + warp_index() * share.of_warp, share.end);
  const uint32_t end = min(begin + share.of_warp, share.end);
  for (uint32_t first = begin; first < end; first += lanes.groups)
    make_records(args, memory, lanes, RankOfExpert(shape), first, end, next,
                 memory.sorted + warp_index() * kWarpSize);
  return true;
}

}  // namespace hep
