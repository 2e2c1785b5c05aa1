// SPDX-License-Identifier: Apache-2.0
// Compares what a rank got with the reference. All functions return the number of wrong values.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "job.h"
#include "session.h"

namespace perf {

// What a dispatch wrote: pointers to memory of the backend.
struct DispatchResult {
  const uint16_t* rows;
  const float* row_weights;    // NULL if not asked for
  const int32_t* row_experts;  // likewise
};

class Checker {
 public:
  Checker(const Job& job, int rank, Session& session) : job_(job), rank_(rank), session_(session) {}

  int64_t routing(hepRouting_t routing, hepStream_t stream) const;

  // `first_token` and `call` tell which slots were the inputs of the call that wrote the results.
  int64_t dispatch(hepLayout_t layout, int64_t first_token, const DispatchResult& result);
  int64_t combine(hepLayout_t layout, int call, const uint16_t* out);

  // The combine of a layer, whose experts return what they were given.
  int64_t layer(hepLayout_t layout, int64_t first_token, const uint16_t* out);

  // A whole [tokens][hidden] of every rank.
  int64_t all_tokens(const uint16_t* rows);

 private:
  using RowOf = std::function<const uint16_t*(int rank, int64_t place)>;

  // Compares `count` rows of `columns` values with those that `expected(row)` points to.
  template <typename T, typename Expected>
  int64_t compare(const T* rows, int64_t count, int64_t columns, Expected expected);
  int64_t compare_combined(const std::vector<uint16_t>& expected, const uint16_t* out);
  std::vector<uint16_t> expected_combine(hepLayout_t layout, const RowOf& row) const;

  const Job& job_;
  int rank_;
  Session& session_;
  // Every case makes the same number of calls, so the last call's result depends on the layout.
  std::map<hepLayout_t, std::vector<uint16_t>> expected_combine_, expected_layer_;
};

}  // namespace perf
