// SPDX-License-Identifier: Apache-2.0
// The exchange of a routing update that is part of a dispatch: every rank sends all others its tokens'
// experts as they are, in words that say by themselves whether they have come. One way, no fence.
#pragma once

#include "cuda/kernels/route_send.cuh"
#include "cuda/kernels/signal.cuh"
#include "cuda/kernels/warp.cuh"

namespace hep {

// Of all ranks, in shared memory, in canonical order of the tokens.
struct Choices {
  uint32_t* first_tokens;  // [R + 1] tokens of the ranks before each
  uint16_t* experts;       // [tokens][K]; kNoExpert: none
  uint8_t* has_weights;    // [R]

  __device__ uint32_t num_tokens(int num_ranks) const { return first_tokens[num_ranks]; }
};

// A word: above, what tells its update from others, 0 from none; below, the payload. It comes again after
// 2^32 - 1 updates.
__device__ inline uint32_t choice_tag(uint64_t epoch) {
  return static_cast<uint32_t>(epoch % 0xffffffffu) + 1;
}
__device__ inline uint64_t choice_word(uint64_t epoch, uint32_t payload) {
  return uint64_t{choice_tag(epoch)} << 32 | payload;
}

__device__ inline uint32_t expert_pair(uint16_t first, uint16_t second) {
  return static_cast<uint32_t>(second) << 16 | first;
}

// The header: tokens below, then top_k, then whether weights follow.
constexpr int kTokenBits = 17, kTopKBits = 6;
static_assert(kMaxTokens < 1 << kTokenBits && kMaxTopK < 1 << kTopKBits);

__device__ inline uint32_t choice_header(const DispatchArgs& args) {
  const uint32_t has_weights = args.call.weights != nullptr;
  return (has_weights << kTopKBits | args.top_k) << kTokenBits | args.num_tokens;
}

// The first of the words of a source that follow its header: experts, then weights.
__device__ inline uint64_t* words_of(const DispatchArgs& args, int window, int source,
                                     uint64_t epoch) {
  return at<uint64_t>(args.context.windows[window],
                      args.context.window_layout.choices_at(epoch, source)) +
         1;
}

// The expert of one of this rank's selections, for the peers; `report` those that do not exist.
template <typename Index>
__device__ uint16_t choice_at(const DispatchArgs& args, int token, int k, bool report) {
  if (k >= args.top_k) return kNoExpert;
  const Index id =
      static_cast<const Index*>(args.indices)[static_cast<int64_t>(token) * args.top_k + k];
  if (id >= 0 && id < args.context.shape().num_experts) return static_cast<uint16_t>(id);
  if (report && id != -1) record_bad_index(args.context.firsts, args.context.host, token, k, id);
  return kNoExpert;
}

// By all threads of all blocks: each word to each rank.
template <typename Index>
__device__ void send_choices(const DispatchArgs& args, uint64_t epoch) {
  const KernelContext& context = args.context;
  const int ranks = context.num_ranks();
  const int words = choice_words(args.top_k);
  const int first = blockIdx.x * blockDim.x + threadIdx.x, stride = gridDim.x * blockDim.x;
  if (first < ranks)
    ptx::st_relaxed_sys(words_of(args, first, context.rank, epoch) - 1,
                        choice_word(epoch, choice_header(args)));
  const int num_pairs = args.num_tokens * words;
  for (int i = first; i < num_pairs * ranks; i += stride) {
    const int rank = i % ranks, word = i / ranks;
    const int token = word / words, k = word % words * 2;
    const bool report = rank == context.rank;
    const uint32_t pair = expert_pair(choice_at<Index>(args, token, k, report),
                                      choice_at<Index>(args, token, k + 1, report));
    ptx::st_relaxed_sys(words_of(args, rank, context.rank, epoch) + word, choice_word(epoch, pair));
  }
  if (args.call.weights == nullptr) return;
  for (int i = first; i < args.num_tokens * args.top_k * ranks; i += stride) {
    const int rank = i % ranks, selection = i / ranks;
    ptx::st_relaxed_sys(words_of(args, rank, context.rank, epoch) + num_pairs + selection,
                        choice_word(epoch, __float_as_uint(args.call.weights[selection])));
  }
}

// Waits for a word of a peer; false as wait_for().
__device__ inline bool take_word(const DispatchArgs& args, const uint64_t* word, int source,
                                 uint64_t epoch, uint32_t* payload) {
  uint64_t seen = ptx::ld_relaxed_sys(word);
  if (choice_tag(epoch) != seen >> 32 &&
      !wait_until(args.context, {hepOperationRouting, hepPhaseRecords, source, epoch}, epoch, [&] {
        seen = ptx::ld_relaxed_sys(word);
        return Poll{seen >> 32, seen >> 32 == choice_tag(epoch)};
      }))
    return false;
  *payload = static_cast<uint32_t>(seen);
  return true;
}

// The headers, one a thread; then where each rank's tokens begin. By all threads of a block.
__device__ inline bool gather_headers(const DispatchArgs& args, uint64_t epoch,
                                      const Choices& choices) {
  const KernelContext& context = args.context;
  const int ranks = context.num_ranks();
  bool here = true;
  for (int source = threadIdx.x; source < ranks; source += blockDim.x) {
    const WaitPoint point{hepOperationRouting, hepPhaseRecords, source, epoch};
    uint32_t header = 0;
    here &=
        take_word(args, words_of(args, context.rank, source, epoch) - 1, source, epoch, &header);
    const uint32_t top_k = header >> kTokenBits & ((1u << kTopKBits) - 1);
    if (here && top_k != args.top_k) {
      record_failure(context, point, hepErrorMismatch, args.top_k, top_k);
      here = false;
    }
    choices.first_tokens[source + 1] = header & ((1u << kTokenBits) - 1);
    choices.has_weights[source] = header >> (kTokenBits + kTopKBits);
  }
  if (!__syncthreads_and(here)) return false;
  if (warp_index() == 0) {
    uint32_t end = 0;
    for (int base = 0; base < ranks; base += kWarpSize) {
      const int source = base + lane_index();
      const uint32_t through =
          warp_inclusive_sum(source < ranks ? choices.first_tokens[source + 1] : 0);
      if (source < ranks) choices.first_tokens[source + 1] = end + through;
      end += __shfl_sync(kFullWarp, through, kWarpSize - 1);
    }
    if (lane_index() == 0) choices.first_tokens[0] = 0;
  }
  __syncthreads();
  return true;
}

// The rank that a token comes from.
__device__ inline int source_of(const Choices& choices, int ranks, uint32_t token) {
  int source = 0, end = ranks;
  while (end - source > 1) {
    const int middle = (source + end) / 2;
    if (choices.first_tokens[middle] <= token)
      source = middle;
    else
      end = middle;
  }
  return source;
}

// Words of which a thread has the loads under way at once.
constexpr int kWordsAtOnce = 4;

// Brings the choices of all ranks to shared memory. By all threads of a block; false after a failure.
__device__ inline bool gather_choices(const DispatchArgs& args, uint64_t epoch,
                                      const Choices& choices) {
  if (!gather_headers(args, epoch, choices)) return false;
  const KernelContext& context = args.context;
  const int ranks = context.num_ranks();
  const uint32_t words = choice_words(args.top_k);
  bool here = true;
  struct Loaded {
    const uint64_t* address;
    int source;
    uint64_t seen;
  };
  for_each_loaded<kWordsAtOnce>(
      threadIdx.x, blockDim.x, choices.num_tokens(ranks) * words,
      [&](uint32_t i) {
        const int source = source_of(choices, ranks, i / words);
        const uint64_t* address =
            words_of(args, context.rank, source, epoch) + i - choices.first_tokens[source] * words;
        return Loaded{address, source, ptx::ld_relaxed_sys(address)};
      },
      [&](uint32_t i, const Loaded& loaded) {
        uint32_t pair = static_cast<uint32_t>(loaded.seen);
        if (loaded.seen >> 32 != choice_tag(epoch))
          here = here && take_word(args, loaded.address, loaded.source, epoch, &pair);
        uint16_t* experts = choices.experts + i / words * args.top_k;
        const int k = i % words * 2;
        experts[k] = static_cast<uint16_t>(pair);
        if (k + 1 < args.top_k) experts[k + 1] = static_cast<uint16_t>(pair >> 16);
      });
  return __syncthreads_and(here);
}

// The weight of a selection, which the source of the token has sent to this rank, too.
__device__ inline float take_sent_weight(const DispatchArgs& args, const Row& row, int k) {
  const KernelContext& context = args.context;
  const uint64_t epoch = context.state->routing_epoch + 1;
  const uint32_t tokens =
      at<uint32_t>(args.routing, context.routing_layout.source_tokens)[row.source];
  const uint64_t* word = words_of(args, context.rank, row.source, epoch) +
                         tokens * choice_words(args.top_k) + row.token * args.top_k + k;
  uint32_t weight = 0;
  take_word(args, word, row.source, epoch, &weight);
  return __uint_as_float(weight);
}

}  // namespace hep
