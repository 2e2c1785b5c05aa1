// SPDX-License-Identifier: Apache-2.0
// How long an operation takes with so many blocks, by a model: the plan chooses by it. Three limits
// count beside what the operation takes to begin and to end:
//
//   ports    what goes in and out of an SM, over all blocks
//   memory   what the GPU's own memory reads and writes
//   links    what comes from the peers
//
// Measurements stand beside the rates in profile.h. Pure functions, without a GPU.
#pragma once

#include <cstdint>

#include "backend/cuda/profile.h"

namespace hep {

// What an operation moves on one rank.
struct Traffic {
  double in, out;     // bytes, of all its blocks together
  double linked;      // bytes that come from the peers
  double quantized;   // bytes that its blocks quantise before they move any
  int32_t shares;     // what a block takes as a whole: rows or groups of tokens
  double fixed_us;    // to begin and to end
  double divided_us;  // that one block would take for what all share beside the rows
  bool one_by_one;    // whether ports and links work in turn, as in a short operation
};

// A batch as one rank knows it. The peers are taken to bring as many tokens, and to want every
// expert alike.
struct Demand {
  bool low_latency;
  int32_t num_ranks, local_experts;
  int32_t num_tokens, top_k;
};

// The ranks that a token goes to, on average.
double ranks_of_token(int num_ranks, int top_k);

struct DispatchDemand : Demand {
  int32_t layout;
  int32_t alignment;    // of the experts' blocks in expert-major
  int64_t row_bytes;    // of a row and its scales
  int64_t x_row_bytes;  // of a row that is quantised; otherwise 0
};
Traffic traffic_of(const DispatchDemand& demand, const Profile& profile);

// How the outputs of combine come to the token's rank.
enum class Sending {
  kNone,  // it reads them in place
  kRows,  // as they are
  kSums   // reduced
};

struct CombineDemand : Demand {
  int32_t layout;
  Sending sending;
  int64_t row_bytes, partial_row_bytes;
};
Traffic traffic_of(const CombineDemand& demand, const Profile& profile);

double model_us(const Traffic& traffic, int32_t blocks, const Profile& profile);

// The fewest blocks that take at most 3 % longer than `most` blocks, which are the fastest.
int32_t fewest_blocks(const Traffic& traffic, int32_t most, const Profile& profile);

}  // namespace hep
