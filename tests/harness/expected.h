// SPDX-License-Identifier: Apache-2.0
// The rows that a dispatch or combine must bring to a rank, by the oracle. Tests and benchmarks
// compare with them.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "oracle/reference.h"

namespace harness {

// Returns a row of an input of a rank. The row need only last until the next call.
using InputRow = std::function<const void*(int rank, int64_t row)>;

// The outputs of a dispatch on one rank. Functions that fill in a row write nothing and return
// false if the row must stay untouched.
class ExpectedDispatch {
 public:
  // `routing` is kept by reference.
  ExpectedDispatch(const reference::Routing& routing, int rank, hepLayout_t layout,
                   int64_t capacity)
      : routing_(routing), arrivals_(routing.at(rank)), layout_(layout), capacity_(capacity) {}

  int64_t num_rows() const { return arrivals_.output_rows(layout_, capacity_); }
  reference::Row row(int64_t index) const {
    return reference::row_at(arrivals_, layout_, capacity_, index);
  }

  // Gives a row of x or of forwarded scales as it was sent, or zeros.
  bool sent(int64_t index, const InputRow& input, int64_t bytes, void* out) const;

  // Gives a row that dispatch quantised from BF16, and its scales.
  bool quantized(int64_t index, hepQuantization_t mode, const InputRow& x, int hidden,
                 int scale_bytes, void* out, void* scales) const;

  // Give a value for each selection of a row: top_k values in the flat layout, otherwise one.
  int columns() const { return layout_ == hepLayoutFlat ? routing_.top_k() : 1; }
  bool weights(int64_t index, const reference::Weights& weights, float* out) const;
  bool experts(int64_t index, int32_t* out) const;  // -1: selects none of this rank

 private:
  int column(const reference::Selection& selection) const {
    return layout_ == hepLayoutFlat ? selection.k : 0;
  }

  const reference::Routing& routing_;
  const reference::Arrivals& arrivals_;
  hepLayout_t layout_;
  int64_t capacity_;
};

// The outputs of a combine.
class ExpectedCombine {
 public:
  // Returns the weight of a row of y.
  using WeightOf = std::function<float(int rank, int64_t row)>;

  // `routing` is kept by reference. Rows of `y` are of the combine's type.
  ExpectedCombine(const reference::Routing& routing, const reference::Combine& combine, InputRow y,
                  WeightOf weight)
      : routing_(routing), combine_(combine), y_(std::move(y)), weight_(std::move(weight)) {}

  // Gives the row of `out` of a rank's token. `values` is scratch for a row of y in FP32.
  void row(int rank, int64_t token, std::vector<float>* values, void* out) const;

 private:
  const reference::Routing& routing_;
  reference::Combine combine_;
  InputRow y_;
  WeightOf weight_;
};

// Returns the weights that a dispatch carried, for hepWeightsDispatched. Keeps a reference to
// `routing`.
ExpectedCombine::WeightOf dispatched_weights(const reference::Routing& routing,
                                             const reference::Combine& combine,
                                             const reference::Weights& weights);

}  // namespace harness
