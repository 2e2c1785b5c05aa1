// SPDX-License-Identifier: Apache-2.0
// The sizes of a communicator, and their limits.
#pragma once

#include <cstdint>

#include "protocol/host_device.h"

namespace hep {

constexpr int kMaxRanks = 72;
constexpr int kMaxTokens = 65536;
constexpr int kMaxTopK = 32;
constexpr int kMaxExperts = 4096;
constexpr int kMaxAlignment = 4096;  // of experts' blocks in the expert-major layout
constexpr int kMaxBlocks = 256;      // of a kernel
constexpr int kMaxLanes = 4;
constexpr int kLowLatencyLanes = 4;
constexpr int64_t kMaxRowBytes = 64 * 1024;
constexpr int kMaxScaleBytes = 16 * 1024;
constexpr int64_t kRowGranularity = 16;  // what the copy engine of an SM moves at least

// Sections of a window and of a routing start at cache lines.
constexpr uint64_t kSectionAlignment = 256;

HEP_HOST_DEVICE constexpr uint64_t align_up(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

HEP_HOST_DEVICE constexpr int ceil_div(int value, int divisor) {
  return (value + divisor - 1) / divisor;
}

// Combine signals progress by chunks of consecutive tokens of a source rank. A rank signals each
// chunk to its source, and a signal takes a microsecond and more, whatever the number of rows. So
// chunks are as long as gives a rank about 30 rows of each: the more ranks, the fewer of a source's
// tokens select one of them.
constexpr int kChunkTokens = 32;
constexpr int kChunkTokensOfRank = 4;
HEP_HOST_DEVICE constexpr int longest_chunk_shift(int num_ranks) {
  int shift = 0;
  while (2 << shift <= kChunkTokens || 2 << shift <= kChunkTokensOfRank * num_ranks) ++shift;
  return shift;
}

// A source of few tokens has shorter chunks, so that all blocks have work: so many of them, but no
// more than give a rank so many signals. (With 128 chunks instead of 32, a flat combine of 128
// tokens on 2 H200s took 49 us instead of 34 with 16 blocks, in low-latency mode 26 instead of 23.
// With 64 nothing was faster.)
constexpr int kFewestChunks = 32;
constexpr int kFewestSignals = 128;
HEP_HOST_DEVICE constexpr int fewest_chunks(int num_ranks) {
  int chunks = kFewestChunks;
  while (chunks > 1 && chunks * num_ranks > kFewestSignals) chunks /= 2;
  return chunks;
}
static_assert(fewest_chunks(kMaxRanks) * kMaxRanks <= kFewestSignals);

// Tokens of a chunk of a source that has so many tokens, as a power of two.
HEP_HOST_DEVICE constexpr int chunk_shift(int num_tokens, int num_ranks) {
  const int longest = longest_chunk_shift(num_ranks), fewest = fewest_chunks(num_ranks);
  int shift = 0;
  while (shift < longest && fewest << shift < num_tokens) ++shift;
  return shift;
}
HEP_HOST_DEVICE constexpr int chunk_tokens(int num_tokens, int num_ranks) {
  return 1 << chunk_shift(num_tokens, num_ranks);
}
HEP_HOST_DEVICE constexpr int num_chunks(int num_tokens, int num_ranks) {
  const int shift = chunk_shift(num_tokens, num_ranks);
  return (num_tokens + (1 << shift) - 1) >> shift;
}

// The sizes of a communicator; all that the layouts depend on. Equal on all ranks.
struct Shape {
  int32_t num_ranks;
  int32_t num_experts;
  int32_t max_tokens;
  int32_t max_top_k;
  int32_t row_bytes;          // most of a dispatched row
  int32_t partial_row_bytes;  // most of a partial sum
  int32_t scale_bytes;        // scales beside a dispatched row
  int64_t heap_bytes;
  int32_t choice_tokens;  // tokens of an update that is part of a dispatch, at most; or 0
  int32_t sets = 1;       // of what is published and of slots: operations take turns with two

  HEP_HOST_DEVICE constexpr int num_local_experts() const { return num_experts / num_ranks; }
  // From one token's scales to the next's in the window, where the copy engine can move them.
  HEP_HOST_DEVICE constexpr uint64_t scale_stride() const {
    return align_up(scale_bytes, kRowGranularity);
  }
  HEP_HOST_DEVICE constexpr int max_chunks() const {
    const int wanted = fewest_chunks(num_ranks);
    const int fewest = max_tokens < wanted ? max_tokens : wanted;
    const int longest = ceil_div(max_tokens, 1 << longest_chunk_shift(num_ranks));
    return longest > fewest ? longest : fewest;
  }

  // Most ranks that one token can select: the slots for partial sums that it needs.
  HEP_HOST_DEVICE constexpr int max_partials() const {
    return max_top_k < num_ranks ? max_top_k : num_ranks;
  }
};

}  // namespace hep
