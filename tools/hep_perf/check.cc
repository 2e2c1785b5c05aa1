// SPDX-License-Identifier: Apache-2.0
#include "check.h"

#include <algorithm>

#include "require.h"

namespace perf {

int64_t Checker::routing(hepRouting_t routing, hepStream_t stream) const {
  const reference::Arrivals& expected = job_.routing().at(rank_);
  std::vector<int32_t> tokens_per_expert(expected.tokens_per_expert.size(), -1);
  hepRoutingCounts_t counts = HEP_ROUTING_COUNTS_INITIALIZER;
  counts.tokens_per_expert = tokens_per_expert.data();
  require(hepRoutingQuery(routing, &counts, stream), "hepRoutingQuery");
  hepRoutingView_t view = HEP_ROUTING_VIEW_INITIALIZER;
  require(hepRoutingGetView(routing, &view), "hepRoutingGetView");
  std::vector<int32_t> offsets(expected.expert_offsets.size());
  harness::download(job_.backend, offsets.data(), view.expert_offsets,
                    offsets.size() * sizeof(int32_t));
  return (counts.num_flat_rows != static_cast<int64_t>(expected.rows.size())) +
         (counts.num_expert_rows != static_cast<int64_t>(expected.selections.size())) +
         (counts.num_padded_rows != static_cast<int64_t>(expected.places.size())) +
         count_different(tokens_per_expert.data(), expected.tokens_per_expert.data(),
                         tokens_per_expert.size(), sizeof(int32_t)) +
         count_different(offsets.data(), expected.expert_offsets.data(), offsets.size(),
                         sizeof(int32_t));
}

int64_t Checker::compare(const void* rows, int64_t count, int64_t columns, int element_bytes,
                         const std::function<const void*(int64_t)>& expected) {
  const int64_t row_bytes = columns * element_bytes;
  const int64_t rows_at_once = Session::kStagingBytes / row_bytes;
  char* const staging = session_.staging();
  int64_t wrong = 0;
  for (int64_t first = 0; first < count; first += rows_at_once) {
    const int64_t taken = std::min(rows_at_once, count - first);
    harness::download(job_.backend, staging, static_cast<const char*>(rows) + first * row_bytes,
                      taken * row_bytes);
    for (int64_t i = 0; i < taken; ++i) {
      const void* const row = expected(first + i);
      if (row == nullptr) continue;
      wrong += count_different(staging + i * row_bytes, row, columns, element_bytes);
    }
  }
  return wrong;
}

int64_t Checker::all_tokens(const void* rows) {
  std::vector<int32_t> starts;
  for (int rank = 0; rank < job_.num_ranks; ++rank) {
    const std::vector<int32_t> of_rank = row_starts(Matrix::kTokens, rank, job_.shape.tokens);
    starts.insert(starts.end(), of_rank.begin(), of_rank.end());
  }
  return session_.rows(job_.format().type).count_wrong(rows, starts, job_.shape.hidden);
}

}  // namespace perf
