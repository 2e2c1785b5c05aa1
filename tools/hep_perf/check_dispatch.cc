// SPDX-License-Identifier: Apache-2.0
// What a dispatch brought: rows and their scales, weights and experts.
#include <algorithm>

#include "check.h"
#include "parallel.h"

namespace perf {

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

}  // namespace perf
