// SPDX-License-Identifier: Apache-2.0
#include "check.h"

#include <algorithm>

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

// ---------------------------------------------------------------------------------- dispatch

int64_t Checker::dispatch(hepLayout_t layout, int64_t capacity, int64_t first_token,
                          const DispatchResult& result) {
  const reference::Arrivals& arrivals = job_.routing().at(rank_);
  const Output output{layout, capacity,
                      layout == hepLayoutExpertPadded ? arrivals.output_rows(layout, capacity)
                                                      : arrivals.num_rows(layout)};
  const int64_t wrong = job_.format().is_quantized() ? quantized(output, first_token, result)
                                                     : forwarded(output, first_token, result);
  return wrong + small_arrays(output, result);
}

// Rows and scales as they were sent.
int64_t Checker::forwarded(const Output& output, int64_t first_token,
                           const DispatchResult& result) {
  const auto starts = [&](Matrix matrix) {
    std::vector<int32_t> starts;
    for (int64_t i = 0; i < output.rows; ++i) {
      const reference::Row row = row_at(output, i);
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

int64_t Checker::quantized(const Output& output, int64_t first_token,
                           const DispatchResult& result) {
  const Quantized& expected = quantize(first_token);
  const std::vector<unsigned char> zeros(job_.row_bytes() + job_.scale_bytes(), 0);
  const auto compare_with = [&](const void* actual, const std::vector<unsigned char>& by_flat_row,
                                int64_t columns, int element_bytes) {
    return compare(actual, output.rows, columns, element_bytes, [&](int64_t i) -> const void* {
      const reference::Row row = row_at(output, i);
      if (row.kind == reference::Row::kUntouched) return nullptr;
      if (row.kind == reference::Row::kPadding) return zeros.data();
      return &by_flat_row[row.selections[0].flat_row * columns * element_bytes];
    });
  };
  const Format& format = job_.format();
  const int hidden = job_.shape.hidden;
  return compare_with(result.rows, expected.rows, hidden, 1) +
         compare_with(result.row_scales, expected.scales, format.scale_columns(hidden),
                      format.scale_element_bytes());
}

// In the flat layout a value for each selection, otherwise one a row.
int64_t Checker::small_arrays(const Output& output, const DispatchResult& result) {
  const bool flat = output.layout == hepLayoutFlat;
  const int columns = flat ? job_.shape.top_k : 1;
  // Fills in what is expected of a row, unless it may be anything.
  const auto expect = [&](int64_t i, auto* values, auto absent, const auto& value) {
    const reference::Row row = row_at(output, i);
    std::fill(values->begin(), values->end(), absent);
    for (int s = 0; s < row.count; ++s) {
      (*values)[flat ? row.selections[s].k : 0] = value(row.selections[s]);
    }
    return row.kind == reference::Row::kUntouched ? nullptr : values->data();
  };
  int64_t wrong = 0;
  std::vector<float> weights(columns);
  if (result.row_weights != nullptr) {
    wrong += compare(result.row_weights, output.rows, columns, sizeof(float), [&](int64_t i) {
      return expect(i, &weights, 0.0f, [&](const reference::Selection& selection) {
        return reference::weight_of(job_.weight_pointers, job_.shape.top_k, selection);
      });
    });
  }
  std::vector<int32_t> experts(columns);
  if (result.row_experts != nullptr) {
    wrong += compare(result.row_experts, output.rows, columns, sizeof(int32_t), [&](int64_t i) {
      return expect(i, &experts, -1,
                    [](const reference::Selection& selection) { return selection.expert; });
    });
  }
  return wrong;
}

// ----------------------------------------------------------------------------------- combine

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

}  // namespace bench
