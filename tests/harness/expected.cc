// SPDX-License-Identifier: Apache-2.0
#include "expected.h"

#include <algorithm>
#include <cstring>

namespace harness {

bool ExpectedDispatch::sent(int64_t index, const InputRow& input, int64_t bytes, void* out) const {
  const reference::Row row = this->row(index);
  if (row.kind == reference::Row::kUntouched) return false;
  if (row.kind == reference::Row::kPadding) {
    std::memset(out, 0, bytes);
  } else {
    std::memcpy(out, input(row.source, row.token), bytes);
  }
  return true;
}

bool ExpectedDispatch::quantized(int64_t index, hepQuantization_t mode, const InputRow& x,
                                 int hidden, int scale_bytes, void* out, void* scales) const {
  const reference::Row row = this->row(index);
  if (row.kind == reference::Row::kUntouched) return false;
  if (row.kind == reference::Row::kPadding) {
    std::memset(out, 0, hidden);
    std::memset(scales, 0, scale_bytes);
  } else {
    reference::quantize(mode, x(row.source, row.token), hidden, static_cast<unsigned char*>(out),
                        static_cast<unsigned char*>(scales), scale_bytes);
  }
  return true;
}

bool ExpectedDispatch::weights(int64_t index, const reference::Weights& weights, float* out) const {
  const reference::Row row = this->row(index);
  if (row.kind == reference::Row::kUntouched) return false;
  std::fill_n(out, columns(), 0.0f);
  for (int i = 0; i < row.count; ++i) {
    const reference::Selection& selection = row.selections[i];
    out[column(selection)] = reference::weight_of(weights, routing_.top_k(), selection);
  }
  return true;
}

bool ExpectedDispatch::experts(int64_t index, int32_t* out) const {
  const reference::Row row = this->row(index);
  if (row.kind == reference::Row::kUntouched) return false;
  std::fill_n(out, columns(), -1);
  for (int i = 0; i < row.count; ++i) {
    out[column(row.selections[i])] = row.selections[i].expert;
  }
  return true;
}

void ExpectedCombine::row(int rank, int64_t token, std::vector<float>* values, void* out) const {
  values->resize(combine_.hidden);
  const auto loaded = [&](int from, int64_t index) {
    reference::load_row(combine_.type, y_(from, index), combine_.hidden, values->data());
    return values->data();
  };
  reference::combine_token(routing_, combine_, rank, token, loaded, weight_, out);
}

ExpectedCombine::WeightOf dispatched_weights(const reference::Routing& routing,
                                             const reference::Combine& combine,
                                             const reference::Weights& weights) {
  return [&routing, combine, weights](int rank, int64_t index) {
    return reference::dispatched_weight(
        weights, routing.top_k(),
        reference::row_at(routing.at(rank), combine.layout, combine.capacity[rank], index));
  };
}

}  // namespace harness
