// SPDX-License-Identifier: Apache-2.0
// What a combine brought back.
#include "check.h"
#include "parallel.h"

namespace perf {

int64_t Checker::combine(const Placement& placement, const std::vector<int64_t>& first_rows,
                         const void* out) {
  std::vector<char>& expected = expected_combine_[placement.layout];
  if (expected.empty()) {
    expected = expected_combine(placement, [&](int rank, int64_t row) {
      return job_.row(job_.format().type, Matrix::kExpertOutputs, rank, first_rows[rank] + row);
    });
  }
  return compare_combined(expected, out);
}

int64_t Checker::layer(const Placement& placement, int64_t first_token, const void* out) {
  const hepLayout_t layout = placement.layout;
  std::vector<char>& expected = expected_layer_[layout];
  if (expected.empty()) {
    expected = expected_combine(placement, [&](int rank, int64_t i) {
      const reference::Row row =
          reference::row_at(job_.routing().at(rank), layout, placement.capacity[rank], i);
      return job_.row(job_.format().type, Matrix::kTokens, row.source, first_token + row.token);
    });
  }
  return compare_combined(expected, out);
}

int64_t Checker::compare_combined(const std::vector<char>& expected, const void* out) {
  const int64_t row_bytes = job_.row_bytes();
  return compare(out, job_.tokens(rank_), job_.shape.hidden,
                 reference::bytes_of(job_.format().type),
                 [&](int64_t token) { return &expected[token * row_bytes]; });
}

std::vector<char> Checker::expected_combine(const Placement& placement, const RowOf& row) const {
  const hepLayout_t layout = placement.layout;
  const bool weighted = job_.weight_mode(layout) == hepWeightsDispatched;
  const auto weight = [&](int rank, int64_t i) {
    if (!weighted) return 1.0f;
    const reference::Row row =
        reference::row_at(job_.routing().at(rank), layout, placement.capacity[rank], i);
    return reference::dispatched_weight(job_.weight_pointers, job_.shape.top_k, row);
  };
  const int hidden = job_.shape.hidden;
  const int64_t row_bytes = job_.row_bytes();
  const hepDataType_t type = job_.format().type;
  const reference::Combine combine{layout, type, hepTypeBfloat16, hidden, placement.capacity};
  std::vector<char> expected(job_.tokens(rank_) * row_bytes);
  parallel_for(job_.tokens(rank_), job_.num_ranks, [&](int64_t token) {
    std::vector<float> values(hidden);
    const auto loaded = [&](int rank, int64_t i) {
      reference::load_row(type, row(rank, i), hidden, values.data());
      return values.data();
    };
    reference::combine_token(job_.routing(), combine, rank_, token, loaded, weight,
                             &expected[token * row_bytes]);
  });
  return expected;
}

}  // namespace perf
