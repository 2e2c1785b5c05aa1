// SPDX-License-Identifier: Apache-2.0
// What a combine brought back.
#include "check.h"
#include "parallel.h"

namespace perf {

int64_t Checker::combine(hepLayout_t layout, int call, const void* out) {
  std::vector<char>& expected = expected_combine_[layout];
  if (expected.empty()) {
    std::vector<int64_t> first_row;
    for (int rank = 0; rank < job_.num_ranks; ++rank) {
      first_row.push_back(expert_slots(job_, layout, rank).first_row(call));
    }
    expected = expected_combine(layout, [&](int rank, int64_t place) {
      return job_.row(job_.format().type, Matrix::kExpertOutputs, rank, first_row[rank] + place);
    });
  }
  return compare_combined(expected, out);
}

int64_t Checker::layer(hepLayout_t layout, int64_t first_token, const void* out) {
  std::vector<char>& expected = expected_layer_[layout];
  if (expected.empty()) {
    expected = expected_combine(layout, [&](int rank, int64_t place) {
      const reference::Row row = reference::row_at(job_.routing().at(rank), layout, place);
      return job_.row(job_.format().type, Matrix::kTokens, row.source, first_token + row.token);
    });
  }
  return compare_combined(expected, out);
}

int64_t Checker::compare_combined(const std::vector<char>& expected, const void* out) {
  const int64_t row_bytes = job_.row_bytes();
  return compare(out, job_.shape.tokens, job_.shape.hidden, reference::bytes_of(job_.format().type),
                 [&](int64_t token) { return &expected[token * row_bytes]; });
}

std::vector<char> Checker::expected_combine(hepLayout_t layout, const RowOf& row) const {
  const bool weighted = job_.weight_mode(layout) == hepWeightsDispatched;
  const auto weight = [&](int rank, int64_t place) {
    if (!weighted) return 1.0f;
    return reference::dispatched_weight(job_.weight_pointers, job_.shape.top_k,
                                        reference::row_at(job_.routing().at(rank), layout, place));
  };
  const int hidden = job_.shape.hidden;
  const int64_t row_bytes = job_.row_bytes();
  const hepDataType_t type = job_.format().type;
  reference::Combine combine{layout, type, hepTypeBfloat16, hidden, {}};
  for (int rank = 0; rank < job_.num_ranks; ++rank) {
    combine.capacity.push_back(job_.routing().at(rank).num_rows(layout));
  }
  std::vector<char> expected(job_.shape.tokens * row_bytes);
  parallel_for(job_.shape.tokens, job_.num_ranks, [&](int64_t token) {
    std::vector<float> values(hidden);
    const auto loaded = [&](int rank, int64_t place) {
      reference::load_row(type, row(rank, place), hidden, values.data());
      return values.data();
    };
    reference::combine_token(job_.routing(), combine, rank_, token, loaded, weight,
                             &expected[token * row_bytes]);
  });
  return expected;
}

}  // namespace perf
