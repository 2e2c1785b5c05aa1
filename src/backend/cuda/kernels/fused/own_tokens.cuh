// SPDX-License-Identifier: Apache-2.0
// Where this rank's own tokens went, for combine, found out by a warp that has nothing else to do.
// (After the placing warps' other work it made a dispatch of 128 FP8 tokens on 4 H200s 7 us
// longer.)
#pragma once

#include "backend/cuda/kernels/common/routing_view.cuh"
#include "backend/cuda/kernels/fused/assign.cuh"
#include "protocol/at.h"
#include "protocol/records.h"
#include "protocol/routing_layout.h"
#include "protocol/shape.h"

namespace hep::fused {

// The ranks that a token selects.
struct RankSet {
  uint64_t low = 0;
  uint32_t high = 0;
  static_assert(kMaxRanks <= 64 + 32);

  __device__ void insert(int rank) {
    if (rank < 64)
      low |= uint64_t{1} << rank;
    else
      high |= 1u << (rank - 64);
  }
  __device__ bool contains(int rank) const {
    return (rank < 64 ? low >> rank : uint64_t{high} >> (rank - 64)) & 1;
  }
  // How many lower ranks it contains.
  __device__ int ordinal(int rank) const {
    if (rank < 64) return __popcll(low & ((uint64_t{1} << rank) - 1));
    return __popcll(low) + __popc(high & ((1u << (rank - 64)) - 1));
  }
  __device__ RankSet of_lane(int lane) const {
    return {__shfl_sync(kFullWarp, low, lane), __shfl_sync(kFullWarp, high, lane)};
  }
};

// By one warp: those of the tokens that the block publishes. The row of a token on a rank has as
// its index how many tokens before it have selected that rank: a lane counts for one rank, 32
// tokens at a time.
__device__ inline void assign_own_tokens(const UpdateArgs& args, const AssignMemory& memory,
                                         RankOfExpert rank_of) {
  const Shape& shape = args.context.shape();
  const uint16_t* experts = memory.experts + args.context.rank * shape.choice_tokens * args.top_k;
  const TokenRange tokens = dispatch::tokens_to_publish(args);
  for (int i = tokens.begin * args.top_k + warp_lane(); i < tokens.end * args.top_k; i += kWarpSize)
    routing_of(args).own_experts()[i] = experts[i];
  for (int first_rank = 0; first_rank < shape.num_ranks; first_rank += kWarpSize) {
    const int rank = first_rank + warp_lane();
    uint32_t count = 0;
    for (int first = 0; first < tokens.end; first += kWarpSize) {
      RankSet selected;
      for (int k = 0; k < args.top_k && first + warp_lane() < tokens.end; ++k) {
        const uint16_t expert = experts[(first + warp_lane()) * args.top_k + k];
        if (expert != kNoExpert) selected.insert(rank_of(expert));
      }
      uint32_t of_rank = 0;  // which of the tokens at hand select the lane's rank
      for (int i = 0; i < min(kWarpSize, shape.num_ranks - first_rank); ++i) {
        const uint32_t selecting = __ballot_sync(kFullWarp, selected.contains(first_rank + i));
        if (warp_lane() == i) of_rank = selecting;
      }
      for (int token = max(tokens.begin, first); token < min(tokens.end, first + kWarpSize);
           ++token) {
        const RankSet ranks = selected.of_lane(token - first);
        const uint32_t before = of_rank & ((1u << (token - first)) - 1);
        if (rank < shape.num_ranks && ranks.contains(rank))
          routing_of(args).sent_rows()[token * shape.max_partials() + ranks.ordinal(rank)] = {
              static_cast<uint16_t>(rank), static_cast<uint16_t>(count + __popc(before))};
        if (warp_lane() == 0 && first_rank == 0)
          routing_of(args).partial_counts()[token] = __popcll(ranks.low) + __popc(ranks.high);
      }
      count += __popc(of_rank);
    }
  }
}

}  // namespace hep::fused
