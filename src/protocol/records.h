// SPDX-License-Identifier: Apache-2.0
// What an update says of tokens and their selections, in windows and in routings.
#pragma once

#include <cstdint>

#include "protocol/host_device.h"
#include "protocol/shape.h"

namespace hep {

// Stands for no expert where 16 bits hold one.
constexpr uint16_t kNoExpert = UINT16_MAX;
static_assert(kMaxExperts <= kNoExpert);

// One flat row: a token that selected at least one expert of the receiving rank.
// In a window it is relative to its source, in a routing absolute.
struct Row {
  uint32_t token;     // index on the source rank
  uint32_t first;     // index of its first selection
  uint16_t count;     // its selections, consecutive, in ascending (expert, k) order; at least 1
  uint16_t ordinal;   // how many lower ranks of this domain the token selected: its slot for the
                      // partial sum
  uint16_t source;    // source rank
  uint16_t position;  // of a source in another domain: among the rows that it sent to this one
};
static_assert(sizeof(Row) == 16);

// One selection of a local expert.
struct Selection {
  uint32_t place;   // in a window: index among the source's selections of this expert in (token, k)
                    // order; in a routing: index of its row in the expert-major layout
  uint16_t expert;  // local expert
  uint16_t k;
};
static_assert(sizeof(Selection) == 8);

// Where a token of this rank went: one for each rank that it selected, in ascending order.
struct SentRow {
  uint16_t rank;
  uint16_t index;  // among this rank's rows there
};
static_assert(sizeof(SentRow) == 4 && kMaxTokens - 1 <= UINT16_MAX);

// What precedes a source's records; uint32_t counts[EL], selections by local expert, follow.
struct RecordHeader {
  uint32_t num_tokens;  // T of the source
  uint32_t num_rows;
  uint32_t num_selections;
  uint16_t top_k;           // must be the same on all ranks
  uint16_t max_selections;  // the most that a token made, those past top_k of a map included
};
static_assert(sizeof(RecordHeader) == 16);

// What a block of an update counts: selections by expert, rows by rank, selections by rank.
HEP_HOST_DEVICE constexpr int num_counters(const Shape& shape) {
  return shape.num_experts + 2 * shape.num_ranks;
}

// Scratch of an update, [counters][blocks]: a thread loads what four blocks have counted at once.
constexpr int kBlocksOfLoad = 16 / sizeof(uint32_t);
HEP_HOST_DEVICE constexpr int block_count_stride(int blocks) {
  return ceil_div(blocks, kBlocksOfLoad) * kBlocksOfLoad;
}
constexpr uint64_t block_count_bytes(const Shape& shape, int blocks) {
  return sizeof(uint32_t) * num_counters(shape) * block_count_stride(blocks);
}

}  // namespace hep
