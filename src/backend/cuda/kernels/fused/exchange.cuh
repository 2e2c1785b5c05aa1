// SPDX-License-Identifier: Apache-2.0
// The exchange of a routing update that is part of a dispatch: every rank sends all others its
// tokens' experts as they are, in words that say by themselves whether they have come. One way, no
// fence.
//
// What a source sends to each rank, for each parity of updates:
//
//   header   [kChoiceHeaderWords]
//   ready    [choice_tokens]   update for which the token's row and scales are published
//   experts  [(T K + 1) / 2]   two selections each
//   weights  [T K]             if given
//
// The words of `header`, `experts` and `weights` carry a tag of the update above and the payload
// below.
#pragma once

#include "backend/cuda/blocks/fused.h"
#include "backend/cuda/kernels/common/published.cuh"
#include "backend/cuda/kernels/common/report.cuh"
#include "backend/cuda/kernels/common/token_group.cuh"
#include "backend/cuda/kernels/common/wait.cuh"
#include "backend/cuda/kernels/common/warp.cuh"
#include "backend/cuda/kernels/dispatch/publish.cuh"
#include "protocol/at.h"
#include "protocol/call_summary.h"
#include "protocol/choices.h"
#include "protocol/shape.h"

namespace hep::fused {

// Flags of a source.
enum : uint32_t {
  kGivesWeights = 1,
  kInPlace = 2,  // its rows lie in its own memory: it waits until they are read
  kTogether = 4  // they are ready all at once, as the first token's word tells
};
constexpr int kFlagBits = 3;

// The first word of a header: tokens below, then top_k, then flags. The others are the lower half
// of the call's summary, the two halves of the location of the rows, and the most selections that a
// token of a map has made. Without a map the last word is 0, because the experts tell.
constexpr int kTokenBits = 17, kTopKBits = 6;
static_assert(kMaxTokens < 1 << kTokenBits && kMaxTopK < 1 << kTopKBits &&
              kTokenBits + kTopKBits + kFlagBits <= 32);

// Word: bits 63-32 are the tag, bits 31-0 the payload. The tag is update / 2 with the top bit set,
// so zeroed memory never matches. Only updates of one parity share a word. A tag repeats after 2^32
// updates.
__device__ inline uint32_t choice_tag(uint64_t update) {
  return static_cast<uint32_t>(update >> 1) | 1u << 31;
}
// Returns the low half of the update that left a tag in a word of `update`'s parity; 0 if none did.
__device__ inline uint64_t update_of_tag(uint32_t tag, uint64_t update) {
  return tag == 0 ? 0 : uint64_t{tag & ~(1u << 31)} << 1 | (update & 1);
}
__device__ inline uint64_t choice_word(uint64_t update, uint32_t payload) {
  return uint64_t{choice_tag(update)} << 32 | payload;
}

// What one source has sent to one rank.
struct ChoiceWords {
  uint64_t* header;

  __device__ ChoiceWords(const KernelContext& context, int window, int source, uint64_t update)
      : header(at<uint64_t>(context.windows[window],
                            context.window_layout.choices_at(update, source))) {}
  __device__ uint64_t* ready() const { return header + kChoiceHeaderWords; }
  __device__ uint64_t* experts(const Shape& shape) const { return ready() + shape.choice_tokens; }
  __device__ uint64_t* weights(const Shape& shape, uint32_t num_tokens, int top_k) const {
    return experts(shape) + (num_tokens * top_k + 1) / 2;
  }
};

// ----------------------------------------------------------------------------------------- sending

__device__ inline uint32_t flags_of(const UpdateArgs& args) {
  const bool in_place = args.rows.publishing == Publishing::kDone && args.num_tokens > 0;
  uint32_t flags = 0;
  if (args.call.weights != nullptr) flags |= kGivesWeights;
  if (in_place) flags |= kInPlace;
  if (in_place && args.call.scales == nullptr) flags |= kTogether;
  return flags;
}

__device__ inline uint32_t header_word(const UpdateArgs& args, uint64_t epoch, uint64_t update,
                                       int word) {
  const uint64_t location = dispatch::rows_location(args, epoch);
  switch (word) {
    case 0: return (flags_of(args) << kTopKBits | args.top_k) << kTokenBits | args.num_tokens;
    case 1: return static_cast<uint32_t>(summary_of(args.call, args.num_tokens, 0));
    case 2: return static_cast<uint32_t>(location);
    case 3: return static_cast<uint32_t>(location >> 32);
    default: return __ldcg(&args.context.state->most_selections[update & 1]);
  }
}

// Two neighbouring selections of this rank, as the caller gave them; -1 past the last.
template <typename Index>
struct SelectionPair {
  Index first, second;

  __device__ SelectionPair(const UpdateArgs& args, uint32_t pair) : first(-1), second(-1) {
    const Index* ids = static_cast<const Index*>(args.indices);
    // A second half sends nothing, and is given what it need not be able to read.
    const uint32_t count = args.step == Step::kReceive ? 0 : args.num_tokens * args.top_k;
    if (2 * pair < count) first = ids[2 * pair];
    if (2 * pair + 1 < count) second = ids[2 * pair + 1];
  }
};

// The expert of a selection, for the peers.
template <typename Index>
__device__ uint32_t choice_of(const UpdateArgs& args, uint32_t selection, Index id) {
  if (id >= 0 && id < args.context.shape().num_experts) return static_cast<uint32_t>(id);
  if (id != -1)
    record_bad_index(args.context.firsts, args.context.host, selection / args.top_k,
                     selection % args.top_k, id);
  return kNoExpert;
}

// The weight of a selection, for the peers; of none if it has no expert.
template <typename Index>
__device__ float weight_of(const UpdateArgs& args, uint32_t selection) {
  if (!args.call.weights_are_dense) return args.call.weights[selection];
  const int num_experts = args.context.shape().num_experts;
  const Index id = static_cast<const Index*>(args.indices)[selection];
  if (id < 0 || id >= num_experts) return 0.0f;
  return args.call.weights[static_cast<int64_t>(selection / args.top_k) * num_experts + id];
}

// By all threads of all blocks; each kind of word begins with another block.
template <typename Index>
__device__ void send_choices(const UpdateArgs& args, SelectionPair<Index> pair, uint64_t epoch,
                             uint64_t update) {
  const KernelContext& context = args.context;
  const Shape& shape = context.shape();
  const int ranks = context.num_ranks();
  const uint32_t stride = gridDim.x * blockDim.x;
  const uint32_t count = args.num_tokens * args.top_k;

  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < (count + 1) / 2; i += stride) {
    const uint32_t first = choice_of(args, 2 * i, pair.first);
    const uint32_t second = choice_of(args, 2 * i + 1, pair.second);
    pair = SelectionPair<Index>(args, i + stride);
    const uint64_t word = choice_word(update, second << 16 | first);
    for (int rank = 0; rank < ranks; ++rank)
      ptx::st_relaxed_sys(ChoiceWords(context, rank, context.rank, update).experts(shape) + i,
                          word);
  }
  if (blockIdx.x == gridDim.x / 2)
    for (int i = threadIdx.x; i < ranks * kChoiceHeaderWords; i += blockDim.x) {
      const int word = i % kChoiceHeaderWords;
      ptx::st_relaxed_sys(
          ChoiceWords(context, i / kChoiceHeaderWords, context.rank, update).header + word,
          choice_word(update, header_word(args, epoch, update, word)));
    }
  if (args.call.weights == nullptr) return;
  for (uint32_t i = (gridDim.x - 1 - blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    const uint64_t word = choice_word(update, __float_as_uint(weight_of<Index>(args, i)));
    for (int rank = 0; rank < ranks; ++rank)
      ptx::st_relaxed_sys(ChoiceWords(context, rank, context.rank, update)
                                  .weights(shape, args.num_tokens, args.top_k) +
                              i,
                          word);
  }
}

// By one warp, after the block has published its part of the tokens.
__device__ inline void signal_tokens(const UpdateArgs& args, uint64_t update, TokenRange tokens) {
  const KernelContext& context = args.context;
  if (flags_of(args) & kTogether) tokens = {0, blockIdx.x == gridDim.x - 1 ? 1 : 0};
  if (tokens.begin >= tokens.end) return;
  ptx::fence_acq_rel_sys();
  for (int rank = 0; rank < context.num_ranks(); ++rank)
    for (int token = tokens.begin + warp_lane(); token < tokens.end; token += kWarpSize)
      ptx::st_relaxed_sys(ChoiceWords(context, rank, context.rank, update).ready() + token, update);
}

// --------------------------------------------------------------------------------------- receiving

// Waits for a word of an update; false as wait_for().
__device__ inline bool take_word(const KernelContext& context, const WaitPoint& point,
                                 const uint64_t* word, uint64_t update, uint32_t* payload) {
  const uint32_t tag = choice_tag(update);
  uint64_t seen = ptx::ld_relaxed_sys(word);
  if (tag != seen >> 32 && !wait_until(context, point, update, [&] {
        seen = ptx::ld_relaxed_sys(word);
        const uint32_t seen_tag = seen >> 32;
        return Poll{update_of_tag(seen_tag, update), seen_tag == tag};
      }))
    return false;
  *payload = static_cast<uint32_t>(seen);
  return true;
}

// The header of a source, a word a lane; what differs from this rank's call fails. By all lanes;
// all return the number of tokens, or one that is too large after a failure.
constexpr uint32_t kNoHeader = 0xffffffffu;
__device__ inline uint32_t take_header(const UpdateArgs& args, int source, uint64_t epoch,
                                       uint64_t update, Sources& sources) {
  const KernelContext& context = args.context;
  const ChoiceWords words(context, context.rank, source, update);
  const int word = warp_lane() % kChoiceHeaderWords;
  const WaitPoint point{hepOperationRouting, hepPhaseRecords, source, update};
  uint32_t payload = 0;
  const bool here = take_word(context, point, words.header + word, update, &payload);
  if (!__all_sync(kFullWarp, here)) return kNoHeader;
  const uint32_t first = __shfl_sync(kFullWarp, payload, 0);
  const uint32_t call = __shfl_sync(kFullWarp, payload, 1);
  const uint64_t location =
      uint64_t{__shfl_sync(kFullWarp, payload, 3)} << 32 | __shfl_sync(kFullWarp, payload, 2);
  const uint32_t most_of_map = __shfl_sync(kFullWarp, payload, 4);
  const uint32_t top_k = first >> kTokenBits & ((1u << kTopKBits) - 1);
  const uint32_t tokens = first & ((1u << kTokenBits) - 1);
  // A second half is for the first half that was executed, whose sizes are in this rank's own
  // header.
  if (source == context.rank && (tokens != args.num_tokens || top_k != args.top_k)) {
    record_failure(context, {hepOperationDispatch, hepPhaseNone, source, epoch},
                   hepErrorInvalidUsage, batch_word(args.num_tokens, args.top_k),
                   batch_word(tokens, top_k));
    return kNoHeader;
  }
  if (top_k != args.top_k) {
    record_failure(context, point, hepErrorMismatch, args.top_k, top_k);
    return kNoHeader;
  }
  const RoutingLayout& most = context.routing_layout;
  if (tokens > static_cast<uint32_t>(most.max_tokens)) {
    record_failure(context, point, hepErrorMismatch, batch_word(most.max_tokens, most.max_top_k),
                   batch_word(tokens, top_k));
    return kNoHeader;
  }
  const uint64_t own_call = summary_of(args.call, args.num_tokens, update);
  const uint64_t their_call = own_call >> 32 << 32 | call;
  if (!alike(own_call, their_call)) {
    record_failure(context, {hepOperationDispatch, hepPhaseRows, source, epoch}, hepErrorMismatch,
                   own_call, their_call);
    return kNoHeader;
  }
  if (warp_lane() == 0) {
    sources.num_tokens[source] = tokens;
    sources.flags[source] = first >> (kTokenBits + kTopKBits);
    sources.rows[source] = published_at(context, source, location);
    atomicMax(&sources.max_selections, most_of_map);
  }
  return tokens;
}

// Words of which a thread has the loads under way at once.
constexpr int kWordsAtOnce = 4;

// Brings the choices of all ranks, [R][choice_tokens][K], kNoExpert for none, to shared memory.
// Warps share the sources among them, several one source where there are enough. By the first
// kAssigningWarps warps of a block; false after a failure.
__device__ inline bool take_choices(const UpdateArgs& args, uint64_t epoch, uint64_t update,
                                    Sources& sources, uint16_t* experts) {
  const KernelContext& context = args.context;
  const Shape& shape = context.shape();
  const int ranks = context.num_ranks();
  const int warps_of_source = max(Divisor(ranks)(kAssigningWarps), 1);
  const int first_source = Divisor(warps_of_source)(warp_index());
  const int part = warp_index() - first_source * warps_of_source;
  const uint32_t stride = shape.choice_tokens * args.top_k;
  for (int source = first_source; source < ranks; source += kAssigningWarps) {
    const uint32_t tokens = take_header(args, source, epoch, update, sources);
    if (tokens == kNoHeader) return false;
    const uint64_t* words = ChoiceWords(context, context.rank, source, update).experts(shape);
    const WaitPoint point{hepOperationRouting, hepPhaseRecords, source, update};
    uint16_t* to = experts + source * stride;
    const uint32_t count = tokens * args.top_k;
    bool here = true;
    for_each_loaded<kWordsAtOnce>(
        part * kWarpSize + warp_lane(), warps_of_source * kWarpSize, (count + 1) / 2,
        [&](uint32_t i) { return ptx::ld_relaxed_sys(words + i); },
        [&](uint32_t i, uint64_t word) {
          uint32_t pair = static_cast<uint32_t>(word);
          if (word >> 32 != choice_tag(update))
            here = here && take_word(context, point, words + i, update, &pair);
          to[2 * i] = static_cast<uint16_t>(pair);
          if (2 * i + 1 < count) to[2 * i + 1] = static_cast<uint16_t>(pair >> 16);
        });
    if (!__all_sync(kFullWarp, here)) return false;
  }
  return true;
}

// Where the sources' tokens begin. By all threads of a block.
__device__ inline void exclusive_scan_tokens(Sources& sources, int ranks) {
  for (int source = threadIdx.x; source <= ranks; source += blockDim.x) {
    uint32_t before = 0;
#pragma unroll 8
    for (int i = 0; i < source; ++i) before += sources.num_tokens[i];
    sources.first_token[source] = before;
  }
}

// The rank that a token comes from, of those counted over all ranks.
__device__ inline int source_of(const Sources& sources, int ranks, uint32_t token) {
  int source = 0, end = ranks;
  while (end - source > 1) {
    const int middle = (source + end) / 2;
    if (sources.first_token[middle] <= token)
      source = middle;
    else
      end = middle;
  }
  return source;
}

// Waits until a token's row and scales are published. False as wait_for().
__device__ inline bool wait_for_token(const UpdateArgs& args, const Sources& sources, int source,
                                      uint32_t token, uint64_t epoch, uint64_t update) {
  const KernelContext& context = args.context;
  const uint64_t* ready = ChoiceWords(context, context.rank, source, update).ready();
  return wait_for(context, {hepOperationDispatch, hepPhaseRows, source, epoch},
                  ready + (sources.flags[source] & kTogether ? 0 : token), update);
}

// Whether a source's rows are read where they lie.
__device__ inline bool any_in_place(const Sources& sources, int ranks) {
  bool any = false;
  for (int source = 0; source < ranks; ++source) any |= (sources.flags[source] & kInPlace) != 0;
  return any;
}

}  // namespace hep::fused
