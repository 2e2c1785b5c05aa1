// SPDX-License-Identifier: Apache-2.0
#include "check.h"

#include <algorithm>
#include <cstring>

#include "parallel.h"

namespace bench {

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
                         const std::function<bool(int64_t, void*)>& expected) {
  const int64_t row_bytes = columns * element_bytes;
  const int64_t rows_at_once = Session::kStagingBytes / row_bytes;
  char* const staging = session_.staging();
  std::vector<char> row(row_bytes);
  int64_t wrong = 0;
  for (int64_t first = 0; first < count; first += rows_at_once) {
    const int64_t taken = std::min(rows_at_once, count - first);
    harness::download(job_.backend, staging, static_cast<const char*>(rows) + first * row_bytes,
                      taken * row_bytes);
    for (int64_t i = 0; i < taken; ++i) {
      if (!expected(first + i, row.data())) continue;
      wrong += count_different(staging + i * row_bytes, row.data(), columns, element_bytes);
    }
  }
  return wrong;
}

// ---------------------------------------------------------------------------------- dispatch

int64_t Checker::dispatch(hepLayout_t layout, int64_t capacity, int64_t first_token,
                          const DispatchResult& result) {
  const Expected expected(job_.routing(), rank_, layout, capacity);
  const int64_t wrong = job_.format().is_quantized() ? quantized(expected, first_token, result)
                                                     : forwarded(expected, first_token, result);
  return wrong + small_arrays(expected, result);
}

// Compares rows and scales with those that were sent, where they lie.
int64_t Checker::forwarded(const Expected& expected, int64_t first_token,
                           const DispatchResult& result) {
  const auto starts = [&](Matrix matrix) {
    std::vector<int32_t> starts;
    for (int64_t i = 0; i < expected.num_rows(); ++i) {
      const reference::Row row = expected.row(i);
      starts.push_back(row.kind == reference::Row::kUntouched ? kAnyRow
                       : row.kind == reference::Row::kPadding
                           ? kZeroRow
                           : row_start(matrix, row.source, first_token + row.token));
    }
    return starts;
  };
  const Format& format = job_.format();
  const int hidden = job_.shape.hidden;
  int64_t wrong =
      session_.rows(format.type).count_wrong(result.rows, starts(Matrix::kTokens), hidden);
  if (result.row_scales != nullptr) {
    wrong +=
        session_.rows(hepTypeFloat32)
            .count_wrong(result.row_scales, starts(Matrix::kScales), format.scale_columns(hidden));
  }
  return wrong;
}

const Checker::Quantized& Checker::quantize(int64_t first_token) {
  if (quantized_.first_token == first_token) return quantized_;
  const Format& format = job_.format();
  const int hidden = job_.shape.hidden;
  const int64_t row_bytes = job_.row_bytes(), scale_bytes = job_.scale_bytes();
  const std::vector<reference::FlatRow>& rows = job_.routing().at(rank_).rows;
  quantized_.first_token = first_token;
  quantized_.rows.resize(rows.size() * row_bytes);
  quantized_.scales.resize(rows.size() * scale_bytes);
  parallel_for(rows.size(), job_.num_ranks, [&](int64_t i) {
    const void* const x =
        job_.row(format.x_type(), Matrix::kTokens, rows[i].source, first_token + rows[i].token);
    reference::quantize(format.quantize, x, hidden, &quantized_.rows[i * row_bytes],
                        &quantized_.scales[i * scale_bytes], static_cast<int>(scale_bytes));
  });
  return quantized_;
}

int64_t Checker::quantized(const Expected& expected, int64_t first_token,
                           const DispatchResult& result) {
  const Quantized& made = quantize(first_token);
  const auto& row_of_token = job_.routing().at(rank_).row_of_token;
  const auto compare_with = [&](const void* actual, const std::vector<unsigned char>& by_flat_row,
                                int64_t columns, int element_bytes) {
    const int64_t bytes = columns * element_bytes;
    const harness::InputRow input = [&](int source, int64_t token) {
      return &by_flat_row[row_of_token[source][token] * bytes];
    };
    return compare(actual, expected.num_rows(), columns, element_bytes,
                   [&](int64_t i, void* row) { return expected.sent(i, input, bytes, row); });
  };
  const Format& format = job_.format();
  const int hidden = job_.shape.hidden;
  return compare_with(result.rows, made.rows, hidden, 1) +
         compare_with(result.row_scales, made.scales, format.scale_columns(hidden),
                      format.scale_element_bytes());
}

int64_t Checker::small_arrays(const Expected& expected, const DispatchResult& result) {
  int64_t wrong = 0;
  if (result.row_weights != nullptr) {
    wrong += compare(result.row_weights, expected.num_rows(), expected.columns(), sizeof(float),
                     [&](int64_t i, void* row) {
                       return expected.weights(i, job_.weight_pointers, static_cast<float*>(row));
                     });
  }
  if (result.row_experts != nullptr) {
    wrong += compare(
        result.row_experts, expected.num_rows(), expected.columns(), sizeof(int32_t),
        [&](int64_t i, void* row) { return expected.experts(i, static_cast<int32_t*>(row)); });
  }
  return wrong;
}

// ----------------------------------------------------------------------------------- combine

int64_t Checker::combine(const Placement& placement, const std::vector<int64_t>& first_rows,
                         const void* out) {
  const harness::InputRow y = [&](int rank, int64_t row) {
    return job_.row(job_.format().type, Matrix::kExpertOutputs, rank, first_rows[rank] + row);
  };
  return compare_combined(&expected_combine_[placement.layout], placement, y, out);
}

int64_t Checker::layer(const Placement& placement, int64_t first_token, const void* out) {
  const hepLayout_t layout = placement.layout;
  const harness::InputRow y = [&](int rank, int64_t i) {
    const reference::Row row =
        reference::row_at(job_.routing().at(rank), layout, placement.capacity[rank], i);
    return job_.row(job_.format().type, Matrix::kTokens, row.source, first_token + row.token);
  };
  return compare_combined(&expected_layer_[layout], placement, y, out);
}

// The expected rows of a layout are computed once and kept.
int64_t Checker::compare_combined(std::vector<char>* expected, const Placement& placement,
                                  const harness::InputRow& y, const void* out) {
  if (expected->empty()) *expected = expected_combine(placement, y);
  const int64_t row_bytes = job_.row_bytes();
  return compare(out, job_.tokens(rank_), job_.shape.hidden,
                 reference::bytes_of(job_.format().type), [&](int64_t token, void* row) {
                   std::memcpy(row, &(*expected)[token * row_bytes], row_bytes);
                   return true;
                 });
}

std::vector<char> Checker::expected_combine(const Placement& placement,
                                            const harness::InputRow& y) const {
  const hepLayout_t layout = placement.layout;
  const reference::Combine shape{layout,
                                 job_.format().type,
                                 hepTypeBfloat16,
                                 job_.shape.hidden,
                                 placement.capacity,
                                 job_.options.domain_size};
  const bool weighted = job_.weight_mode(layout) == hepWeightsDispatched;
  const harness::ExpectedCombine combine(
      job_.routing(), shape, y,
      weighted ? harness::dispatched_weights(job_.routing(), shape, job_.weight_pointers)
               : harness::ExpectedCombine::WeightOf([](int, int64_t) { return 1.0f; }));
  const int64_t row_bytes = job_.row_bytes();
  std::vector<char> expected(job_.tokens(rank_) * row_bytes);
  parallel_for(job_.tokens(rank_), job_.num_ranks, [&](int64_t token) {
    std::vector<float> values;
    combine.row(rank_, token, &values, &expected[token * row_bytes]);
  });
  return expected;
}

}  // namespace bench
