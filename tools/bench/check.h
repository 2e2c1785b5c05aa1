// SPDX-License-Identifier: Apache-2.0
// Compares the results of a rank with the reference. All functions return the number of wrong
// values.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "buffers.h"
#include "harness/expected.h"
#include "job.h"

namespace bench {

// The outputs of a dispatch, in memory of the backend.
struct DispatchResult {
  const void* rows;
  const float* row_weights;          // NULL if not asked for
  const int32_t* row_experts;        // likewise
  const void* row_scales = nullptr;  // NULL if the format has none
};

// Where the rows of all ranks lie.
struct Placement {
  hepLayout_t layout;
  std::vector<int64_t> capacity;  // by rank
};

class Checker {
 public:
  Checker(const Job& job, int rank, Session& session) : job_(job), rank_(rank), session_(session) {}

  int64_t routing(hepRouting_t routing, hepStream_t stream) const;

  // `first_token` and `first_rows` tell which slots were the inputs of the call that wrote the
  // results; for a layout they are always the same placement and slots.
  int64_t dispatch(hepLayout_t layout, int64_t capacity, int64_t first_token,
                   const DispatchResult& result);
  int64_t combine(const Placement& placement, const std::vector<int64_t>& first_rows,
                  const void* out);

  // The combine of a layer, whose experts return what they were given.
  int64_t layer(const Placement& placement, int64_t first_token, const void* out);

 private:
  using Expected = harness::ExpectedDispatch;

  // The rows that a quantising dispatch brings to this rank, by flat row.
  struct Quantized {
    int64_t first_token = -1;  // the first of its tokens
    std::vector<unsigned char> rows, scales;
  };

  int64_t forwarded(const Expected& expected, int64_t first_token, const DispatchResult& result);
  int64_t quantized(const Expected& expected, int64_t first_token, const DispatchResult& result);
  const Quantized& quantize(int64_t first_token);
  int64_t small_arrays(const Expected& expected, const DispatchResult& result);

  // `y` is the input of the combine whose result is expected.
  int64_t compare_combined(std::vector<char>* expected, const Placement& placement,
                           const harness::InputRow& y, const void* out);
  std::vector<char> expected_combine(const Placement& placement, const harness::InputRow& y) const;

  // Compares `count` rows of `columns` elements with those that `expected(index, row)` fills in.
  // `expected` returns false if a row may hold anything.
  int64_t compare(const void* rows, int64_t count, int64_t columns, int element_bytes,
                  const std::function<bool(int64_t, void*)>& expected);

  const Job& job_;
  int rank_;
  Session& session_;
  Quantized quantized_;
  std::map<hepLayout_t, std::vector<char>> expected_combine_, expected_layer_;
};

}  // namespace bench
