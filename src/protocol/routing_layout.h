// SPDX-License-Identifier: Apache-2.0
// What lies where in the private memory of a routing.
#pragma once

#include <hybridep.h>

#include <cstdint>

#include "protocol/host_device.h"
#include "protocol/records.h"
#include "protocol/shape.h"

namespace hep {

// Byte offsets into the private memory of a routing of at most max_tokens and K, filled by an
// update. What has max_chunks or max_partials entries has as many as the communicator's shape says.
//
//   tokens_per_expert  [EL] int32_t
//   expert_offsets     [EL + 1] int32_t   aligned
//   totals             RoutingTotals
//   source_tokens      [R] uint32_t       T of each source
//   source_rows        [R + 1] uint32_t   flat rows before each source
//   chunk_rows         [R][max_chunks + 1] uint32_t   flat row, absolute, at which each chunk of a
//                                         source's tokens begins, and after the last one the end
//                                         of its rows
//   own_experts        [max_tokens][K] uint16_t   experts that the tokens of this rank selected
//   partial_counts     [max_tokens] uint8_t   ranks that each token of this rank selected
//   sent_rows          [max_tokens][max_partials] SentRow   on the cuda backend
//   rows               [R * max_tokens] Row, in canonical order
//   selections         [R * max_tokens * K] Selection, in the order of their rows
//   weights            [R * max_tokens * K] float, of the selections; filled by dispatch. On the
//                      cuda backend an update keeps the indices of a map here meanwhile
struct RoutingTotals {
  int64_t num_flat_rows;
  int64_t num_expert_rows;
  hepRowCounters_t row_counters;  // of the latest dispatch
  // Of the update that filled this routing: which one of the lane, and its T and K.
  uint64_t update;
  int32_t num_tokens, top_k;
  uint64_t routing;        // the number of the routing: memory may have been another's before
  int64_t max_selections;  // of all ranks' headers
};

struct RoutingLayout {
  uint64_t tokens_per_expert, expert_offsets, totals, source_tokens, source_rows, chunk_rows,
      own_experts, partial_counts, sent_rows, rows, selections, weights, total;
  int32_t num_experts;  // EL

  int32_t max_tokens, max_top_k;

  HEP_HOST_DEVICE static constexpr RoutingLayout make(const Shape& shape) {
    return make(shape, shape.max_tokens, shape.max_top_k);
  }
  HEP_HOST_DEVICE static constexpr RoutingLayout make(const Shape& shape, int32_t max_tokens,
                                                      int32_t max_top_k) {
    const uint64_t ranks = shape.num_ranks, tokens = max_tokens;
    const uint64_t experts = shape.num_local_experts(), max_rows = ranks * tokens;
    RoutingLayout r{};
    r.num_experts = shape.num_local_experts();
    r.max_tokens = max_tokens;
    r.max_top_k = max_top_k;
    uint64_t end = 0;
    const auto section = [&end](uint64_t bytes) {
      const uint64_t begin = end;
      end = align_up(end + bytes, kSectionAlignment);
      return begin;
    };
    r.tokens_per_expert = section(experts * sizeof(int32_t));
    r.expert_offsets = section((experts + 1) * sizeof(int32_t));
    r.totals = section(sizeof(RoutingTotals));
    r.source_tokens = section(ranks * sizeof(uint32_t));
    r.source_rows = section((ranks + 1) * sizeof(uint32_t));
    r.chunk_rows = section(ranks * (shape.max_chunks() + 1) * sizeof(uint32_t));
    r.own_experts = section(tokens * max_top_k * sizeof(uint16_t));
    r.partial_counts = section(tokens);
    r.sent_rows = section(tokens * shape.max_partials() * sizeof(SentRow));
    r.rows = section(max_rows * sizeof(Row));
    r.selections = section(max_rows * max_top_k * sizeof(Selection));
    r.weights = section(max_rows * max_top_k * sizeof(float));
    r.total = end;
    return r;
  }
};

}  // namespace hep
