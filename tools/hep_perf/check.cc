// SPDX-License-Identifier: Apache-2.0
#include "check.h"

#include <algorithm>
#include <cstring>

#include "parallel.h"
#include "require.h"

namespace perf {
namespace {

template <typename T>
int64_t count_different(const T* a, const T* b, int64_t count) {
  if (count == 0 || std::memcmp(a, b, count * sizeof(T)) == 0) return 0;
  int64_t different = 0;
  for (int64_t i = 0; i < count; ++i) different += std::memcmp(a + i, b + i, sizeof(T)) != 0;
  return different;
}

}  // namespace

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
                         tokens_per_expert.size()) +
         count_different(offsets.data(), expected.expert_offsets.data(), offsets.size());
}

template <typename T, typename Expected>
int64_t Checker::compare(const T* rows, int64_t count, int64_t columns, Expected expected) {
  const int64_t row_bytes = columns * sizeof(T);
  const int64_t rows_at_once = Session::kStagingBytes / row_bytes;
  char* const staging = session_.staging();
  int64_t wrong = 0;
  for (int64_t first = 0; first < count; first += rows_at_once) {
    const int64_t taken = std::min(rows_at_once, count - first);
    harness::download(job_.backend, staging, rows + first * columns, taken * row_bytes);
    for (int64_t i = 0; i < taken; ++i) {
      const T* const actual = reinterpret_cast<const T*>(staging + i * row_bytes);
      wrong += count_different<T>(actual, expected(first + i), columns);
    }
  }
  return wrong;
}

int64_t Checker::dispatch(hepLayout_t layout, int64_t first_token, const DispatchResult& result) {
  const reference::Arrivals& arrivals = job_.routing().at(rank_);
  const int64_t rows = arrivals.num_rows(layout);
  std::vector<int32_t> starts;
  for (int64_t place = 0; place < rows; ++place) {
    const reference::Row row = reference::row_at(arrivals, layout, place);
    starts.push_back(row.source < 0
                         ? kZeroRow
                         : row_start(Matrix::kTokens, row.source, first_token + row.token));
  }
  int64_t wrong = session_.rows.count_wrong(result.rows, starts, job_.shape.hidden);

  // The small arrays: in the flat layout a value for each selection, otherwise one a row.
  const bool flat = layout == hepLayoutFlat;
  const int columns = flat ? job_.shape.top_k : 1;
  const auto for_selections = [&](int64_t place, const auto& set) {
    const reference::Row row = reference::row_at(arrivals, layout, place);
    for (int i = 0; i < row.count; ++i) {
      set(flat ? row.selections[i].k : 0, row.selections[i]);
    }
  };
  std::vector<float> weights(columns);
  if (result.row_weights != nullptr) {
    wrong += compare(result.row_weights, rows, columns, [&](int64_t place) {
      std::fill(weights.begin(), weights.end(), 0.0f);
      for_selections(place, [&](int column, const reference::Selection& selection) {
        weights[column] = reference::weight_of(job_.weight_pointers, job_.shape.top_k, selection);
      });
      return weights.data();
    });
  }
  std::vector<int32_t> experts(columns);
  if (result.row_experts != nullptr) {
    wrong += compare(result.row_experts, rows, columns, [&](int64_t place) {
      std::fill(experts.begin(), experts.end(), -1);
      for_selections(place, [&](int column, const reference::Selection& selection) {
        experts[column] = selection.expert;
      });
      return experts.data();
    });
  }
  return wrong;
}

int64_t Checker::all_tokens(const uint16_t* rows) {
  std::vector<int32_t> starts;
  for (int rank = 0; rank < job_.num_ranks; ++rank) {
    for (int token = 0; token < job_.shape.tokens; ++token) {
      starts.push_back(row_start(Matrix::kTokens, rank, token));
    }
  }
  return session_.rows.count_wrong(rows, starts, job_.shape.hidden);
}

int64_t Checker::combine(hepLayout_t layout, int call, const uint16_t* out) {
  std::vector<uint16_t>& expected = expected_combine_[layout];
  if (expected.empty()) {
    std::vector<int64_t> first_row;
    for (int rank = 0; rank < job_.num_ranks; ++rank) {
      first_row.push_back(expert_slots(job_, layout, rank).first_row(call));
    }
    expected = expected_combine(layout, [&](int rank, int64_t place) {
      return job_.row(Matrix::kExpertOutputs, rank, first_row[rank] + place);
    });
  }
  return compare_combined(expected, out);
}

int64_t Checker::layer(hepLayout_t layout, int64_t first_token, const uint16_t* out) {
  std::vector<uint16_t>& expected = expected_layer_[layout];
  if (expected.empty()) {
    expected = expected_combine(layout, [&](int rank, int64_t place) {
      const reference::Row row = reference::row_at(job_.routing().at(rank), layout, place);
      return job_.row(Matrix::kTokens, row.source, first_token + row.token);
    });
  }
  return compare_combined(expected, out);
}

int64_t Checker::compare_combined(const std::vector<uint16_t>& expected, const uint16_t* out) {
  const int64_t hidden = job_.shape.hidden;
  return compare(out, job_.shape.tokens, hidden,
                 [&](int64_t token) { return &expected[token * hidden]; });
}

std::vector<uint16_t> Checker::expected_combine(hepLayout_t layout, const RowOf& row) const {
  const bool weighted = job_.weight_mode(layout) == hepWeightsDispatched;
  const auto weight = [&](int rank, int64_t place) {
    if (!weighted) return 1.0f;
    return reference::dispatched_weight(job_.weight_pointers, job_.shape.top_k,
                                        reference::row_at(job_.routing().at(rank), layout, place));
  };
  const int64_t hidden = job_.shape.hidden;
  std::vector<uint16_t> expected(job_.shape.tokens * hidden);
  parallel_for(job_.shape.tokens, job_.num_ranks, [&](int64_t token) {
    reference::combine_token(job_.routing(), layout, rank_, token, hidden, row, weight,
                             &expected[token * hidden]);
  });
  return expected;
}

}  // namespace perf
