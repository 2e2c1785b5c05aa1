// SPDX-License-Identifier: Apache-2.0
// The routing update that is part of a dispatch: every block counts the choices of all ranks, and
// makes the records of its share of the tokens, whose rows it then moves. What all blocks leave
// together is what the routing kernel leaves.
#pragma once

#include "backend/cuda/kernels/common/bit_cast.cuh"
#include "backend/cuda/kernels/common/routing_view.cuh"
#include "backend/cuda/kernels/dispatch/extras.cuh"
#include "backend/cuda/kernels/fused/exchange.cuh"
#include "protocol/at.h"
#include "protocol/choices.h"
#include "protocol/records.h"
#include "protocol/routing_layout.h"
#include "protocol/shape.h"

namespace hep::fused {

using dispatch::ExpertBlocks;

constexpr int kAssigningBarrier = 1;

// Which tokens, counted over all ranks, a block and its warps make records of.
struct TokenShare {
  uint32_t begin, end;  // of the block
  int shift;            // a warp makes those of 2^shift tokens

  __device__ explicit TokenShare(uint32_t num_tokens) : shift(0) {
    const uint32_t tokens = Divisor(gridDim.x)(num_tokens + gridDim.x - 1);
    while (uint32_t{kAssigningWarps} << shift < tokens) ++shift;
    begin = min(blockIdx.x * tokens, num_tokens);
    end = min(begin + tokens, num_tokens);
  }

  __device__ int class_of(uint32_t token) const {
    if (token < begin) return 0;
    return token < end ? 1 + ((token - begin) >> shift) : kClasses - 1;
  }
  __device__ TokenRange of_warp(int warp) const {
    const uint32_t first = min(begin + (warp << shift), end);
    return {static_cast<int>(first), static_cast<int>(min(first + (1u << shift), end))};
  }
};

// The counters of a class, which then tell what is to be given out next.
struct AssignCounters {
  uint32_t* by_expert;  // [EL] selections; then the next place
  uint32_t* rows;       // on this rank
  uint32_t* selections;

  __device__ AssignCounters(uint32_t* memory, const Shape& shape)
      : by_expert(memory), rows(memory + shape.num_local_experts()), selections(rows + 1) {}
};

// Shared memory of a block, assign_bytes() of it.
struct AssignMemory {
  Selection* sorted;      // [kAssigningWarps][kWarpSize]
  uint32_t* source_rows;  // [R] rows that go to this rank
  int32_t* offsets;       // [EL + 1] of the experts' rows
  int32_t* counts;        // [EL]
  uint32_t* counters;     // [kClasses][assign_counters()]
  uint16_t* experts;      // [R][choice_tokens][K]

  __device__ AssignMemory(void* shared, const Shape& shape)
      : sorted(static_cast<Selection*>(shared)),
        source_rows(reinterpret_cast<uint32_t*>(sorted + kAssigningThreads)),
        offsets(reinterpret_cast<int32_t*>(source_rows + shape.num_ranks)),
        counts(offsets + shape.num_local_experts() + 1),
        counters(reinterpret_cast<uint32_t*>(counts + shape.num_local_experts())),
        experts(reinterpret_cast<uint16_t*>(counters + kClasses * assign_counters(shape))) {}

  __device__ ExpertBlocks expert_blocks() const { return {counts, offsets}; }
  __device__ AssignCounters of_class(int number, const Shape& shape) const {
    return AssignCounters(counters + number * assign_counters(shape), shape);
  }

  // By all threads of a block, long before they are used.
  __device__ void clear_counters(const Shape& shape) const {
    for (int i = threadIdx.x; i < shape.num_ranks; i += blockDim.x) source_rows[i] = 0;
    for (int i = threadIdx.x; i < kClasses * assign_counters(shape); i += blockDim.x)
      counters[i] = 0;
  }
};

// An update as a block sees it once the choices of all ranks are here.
struct BlockUpdate {
  const UpdateArgs& args;
  const AssignMemory& memory;
  Sources& sources;
  const TokenShare& share;
  const SelectionWarpLanes& lanes;
  RankOfExpert rank_of;
  uint64_t epoch, update;  // of dispatch and of routing updates
};

// Counts all tokens, one a thread. By all placing threads.
__device__ inline void count_choices(const BlockUpdate& block) {
  const UpdateArgs& args = block.args;
  const AssignMemory& memory = block.memory;
  const Sources& sources = block.sources;
  const KernelContext& context = args.context;
  const Shape& shape = context.shape();
  const int local_base = context.rank * shape.num_local_experts();
  const int ranks = shape.num_ranks;
  const uint32_t num_tokens = sources.first_token[ranks];
  uint32_t most = 0;
  for (uint32_t base = warp_index() * kWarpSize; base < num_tokens; base += kAssigningThreads) {
    const uint32_t token = base + warp_lane();
    const bool valid = token < num_tokens;
    const int source = valid ? source_of(sources, ranks, token) : 0;
    const int number = block.share.class_of(token);
    const AssignCounters count = memory.of_class(number, shape);
    const uint16_t* experts = memory.experts + (source * shape.choice_tokens +
                                                (valid ? token - sources.first_token[source] : 0)) *
                                                   args.top_k;
    uint32_t selections = 0, made = 0;
#pragma unroll 4
    for (int k = 0; k < args.top_k; ++k) {
      const uint32_t chosen = valid ? experts[k] : kNoExpert;
      made += chosen != kNoExpert;
      const uint32_t expert = chosen - local_base;
      if (expert >= static_cast<uint32_t>(shape.num_local_experts())) continue;
      atomicAdd(&count.by_expert[expert], 1u);
      ++selections;
    }
    most = max(most, made);
    if (selections == 0) continue;
    atomicAdd(count.rows, 1u);
    atomicAdd(count.selections, selections);
    atomicAdd(&memory.source_rows[source], 1u);
  }
  most = __reduce_max_sync(kFullWarp, most);
  if (warp_lane() == 0 && most > 0) atomicMax(&block.sources.max_selections, most);
}

// A counter of all classes.
struct ClassCounts {
  uint32_t counts[kClasses];

  // All 0 without a counter.
  __device__ ClassCounts(const uint32_t* counter, int stride) {
#pragma unroll
    for (int i = 0; i < kClasses; ++i) counts[i] = counter != nullptr ? counter[i * stride] : 0;
  }
  __device__ uint32_t total() const {
    uint32_t sum = 0;
#pragma unroll
    for (int i = 0; i < kClasses; ++i) sum += counts[i];
    return sum;
  }
  // Makes the counter of each class start where the classes before it end, the first at `begin`.
  __device__ void exclusive_scan(uint32_t* counter, int stride, uint32_t begin) const {
#pragma unroll
    for (int i = 0; i < kClasses; ++i) {
      counter[i * stride] = begin;
      begin += counts[i];
    }
  }
};

// By one warp: where the rows of the local experts begin, and those of each class among them.
__device__ inline void assign_experts(const UpdateArgs& args, const AssignMemory& memory) {
  const Shape& shape = args.context.shape();
  const int local_experts = shape.num_local_experts();
  const int stride = assign_counters(shape);
  const Divisor by_alignment(args.alignment);
  static_assert(kMaxAssignBytes / sizeof(uint16_t) + kMaxAlignment <= Divisor::kLimit);
  uint32_t end = 0;
  for (int base = 0; base < local_experts; base += kWarpSize) {
    const int e = base + warp_lane();
    uint32_t* counter = e < local_experts ? memory.counters + e : nullptr;
    const ClassCounts classes(counter, stride);
    const uint32_t count = classes.total();
    const uint32_t aligned = by_alignment(count + args.alignment - 1) * args.alignment;
    const uint32_t through = warp_inclusive_sum(aligned);
    const uint32_t begin = end + through - aligned;
    if (e < local_experts) {
      classes.exclusive_scan(counter, stride, begin);
      memory.offsets[e] = begin;
      memory.counts[e] = count;
      if (blockIdx.x == 0) {
        routing_of(args).tokens_per_expert()[e] = count;
        routing_of(args).expert_offsets()[e] = begin;
      }
    }
    end += __shfl_sync(kFullWarp, through, kWarpSize - 1);
  }
  if (warp_lane() != 0) return;
  memory.offsets[local_experts] = end;
  if (blockIdx.x == 0) routing_of(args).expert_offsets()[local_experts] = end;
}

// By one warp: where the rows and selections of each class begin.
__device__ inline void place_rows(const UpdateArgs& args, const AssignMemory& memory,
                                  BlockRows* rows) {
  const Shape& shape = args.context.shape();
  const int stride = assign_counters(shape);
  if (warp_lane() >= 2) return;  // one counts rows, the other selections
  const int i = shape.num_local_experts() + warp_lane();
  const ClassCounts classes(memory.counters + i, stride);
  classes.exclusive_scan(memory.counters + i, stride, 0);
  if (warp_lane() == 0)
    *rows = {memory.counters[stride + i], memory.counters[(kClasses - 1) * stride + i]};
  if (blockIdx.x != 0) return;
  RoutingTotals* totals = routing_of(args).totals();
  (warp_lane() == 0 ? totals->num_flat_rows : totals->num_expert_rows) = classes.total();
}

// By one warp of one block: where the rows of each source begin.
__device__ inline void assign_sources(const UpdateArgs& args, const AssignMemory& memory,
                                      const Sources& sources) {
  const int ranks = args.context.num_ranks();
  uint32_t* source_tokens = routing_of(args).source_tokens();
  uint32_t* source_rows = routing_of(args).source_rows();
  uint32_t* chunk_rows = routing_of(args).chunk_rows();
  const int chunk_stride = args.context.shape().max_chunks() + 1;
  uint32_t rows = 0;
  for (int base = 0; base < ranks; base += kWarpSize) {
    const int source = base + warp_lane();
    const uint32_t count = source < ranks ? memory.source_rows[source] : 0;
    const uint32_t through = warp_inclusive_sum(count);
    if (source < ranks) {
      const int tokens = sources.num_tokens[source];
      source_tokens[source] = tokens;
      source_rows[source] = rows + through - count;
      chunk_rows[source * chunk_stride + num_chunks(tokens, ranks)] = rows + through;
    }
    rows += __shfl_sync(kFullWarp, through, kWarpSize - 1);
  }
  if (warp_lane() != 0) return;
  source_rows[ranks] = rows;
  routing_of(args).totals()->max_selections = sources.max_selections;
}

// A lane's selection of the tokens at hand.
struct LaneChoice {
  uint32_t token;  // on its source
  int source;      // kNone: the lane has no token
  int expert;      // kNone: none
  int rank;        // that hosts it; kNone

  __device__ LaneChoice(const BlockUpdate& block, int first, int end)
      : token(0), source(kNone), expert(kNone), rank(kNone) {
    const UpdateArgs& args = block.args;
    const SelectionWarpLanes& lanes = block.lanes;
    const int number = first + lanes.group;
    if (lanes.group >= lanes.groups || number >= end) return;
    source = source_of(block.sources, args.context.num_ranks(), number);
    token = number - block.sources.first_token[source];
    const uint16_t chosen =
        block.memory.experts[(source * args.context.shape().choice_tokens + token) * args.top_k +
                             lanes.index];
    if (chosen == kNoExpert) return;
    expert = chosen;
    rank = block.rank_of(chosen);
  }
};

// Makes the records of the tokens from `first` on. `next` tells what to give out.
__device__ inline void make_records(const BlockUpdate& block, int first, int end,
                                    const AssignCounters& next) {
  const UpdateArgs& args = block.args;
  const SelectionWarpLanes& lanes = block.lanes;
  const KernelContext& context = args.context;
  const int local_base = context.rank * context.shape().num_local_experts();
  const LaneChoice choice(block, first, end);

  // Local selections get their places, in (token, k) order.
  const bool chose_local = choice.rank == context.rank;
  const uint32_t same_expert = __match_any_sync(kFullWarp, choice.expert);
  const int before = __popc(same_expert & warp_lanes_below());
  const int expert = choice.expert - local_base;
  const uint32_t place = chose_local ? next.by_expert[expert] + before : 0;
  __syncwarp();
  if (chose_local && before == 0) next.by_expert[expert] += __popc(same_expert);
  Selection selection = sort_by_expert(lanes, args.top_k, choice.expert, place,
                                       block.memory.sorted + warp_index() * kWarpSize);

  // Now in ascending (expert, k) order of each token.
  const bool valid = lanes.group < lanes.groups && selection.expert != kNoExpert;
  const int rank = valid ? block.rank_of(selection.expert) : kNone;
  const uint32_t same_rank = __match_any_sync(kFullWarp, rank);
  const bool leads = valid && (same_rank & lanes.of_group & warp_lanes_below()) == 0;
  const uint32_t leaders = __ballot_sync(kFullWarp, leads);
  const int ordinal = __popc(leaders & lanes.of_group & warp_lanes_below());

  const uint32_t local = __ballot_sync(kFullWarp, rank == context.rank);
  const uint32_t local_rows = local & leaders;
  const uint32_t row_index = *next.rows + __popc(local_rows & warp_lanes_below());
  const uint32_t number = *next.selections + __popc(local & warp_lanes_below());
  if (rank == context.rank) {
    selection.expert -= local_base;
    routing_of(args).selection_words()[number] = bit_cast<uint2>(selection);
    if (leads) {
      const Row row{choice.token,
                    number,
                    static_cast<uint16_t>(__popc(local & lanes.of_group)),
                    static_cast<uint16_t>(ordinal),
                    static_cast<uint16_t>(choice.source),
                    0};
      routing_of(args).row_words()[row_index] = bit_cast<uint4>(row);
    }
  }

  if (choice.source != kNone && lanes.index == 0) {
    const int shift = chunk_shift(block.sources.num_tokens[choice.source], context.num_ranks());
    if ((choice.token & ((1u << shift) - 1)) == 0)
      routing_of(args).chunk_rows()[choice.source * (context.shape().max_chunks() + 1) +
                                    (choice.token >> shift)] = row_index;
  }
  __syncwarp();
  if (warp_lane() == 0) {
    *next.rows += __popc(local_rows);
    *next.selections += __popc(local);
  }
  __syncwarp();
}

// From choices to counters that tell what to give out. By all placing threads of a block.
__device__ inline void assign_choices(const BlockUpdate& block, BlockRows* rows) {
  count_choices(block);
  ptx::barrier_sync(kAssigningBarrier, kAssigningThreads);
  switch (warp_index()) {
    case 0: assign_experts(block.args, block.memory); break;
    case 1: place_rows(block.args, block.memory, rows); break;
    case 2:
      if (blockIdx.x == 0) assign_sources(block.args, block.memory, block.sources);
      break;
  }
  ptx::barrier_sync(kAssigningBarrier, kAssigningThreads);
}

}  // namespace hep::fused
