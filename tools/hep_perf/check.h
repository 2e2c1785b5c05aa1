// SPDX-License-Identifier: Apache-2.0
// Compares what a rank got with the reference. All functions return the number of wrong values.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "gpu.h"
#include "harness/memory.h"
#include "job.h"

namespace perf {

// What a dispatch wrote: pointers to memory of the backend.
struct DispatchResult {
  const uint16_t* rows;
  const float* row_weights;    // NULL if not asked for
  const int32_t* row_experts;  // likewise
};

class Checker {
 public:
  Checker(const Job& job, int rank);

  int64_t routing(hepRouting_t routing, hepStream_t stream) const;

  // `call` is the index of the call that wrote the results: it tells which slots were the inputs.
  int64_t dispatch(hepLayout_t layout, int call, const DispatchResult& result);
  int64_t combine(hepLayout_t layout, int call, const uint16_t* out);

 private:
  // Compares `count` rows of `columns` values with those that `expected(row)` points to.
  template <typename T, typename Expected>
  int64_t compare(const T* rows, int64_t count, int64_t columns, Expected expected);
  const std::vector<uint16_t>& expected_combine(hepLayout_t layout, int call);

  const Job& job_;
  int rank_;
  std::unique_ptr<PinnedMemory> pinned_;  // on cuda
  std::vector<char> plain_;               // on host
  char* staging_;
  // Every case makes the same number of calls, so the last call's result depends on the layout.
  std::map<hepLayout_t, std::vector<uint16_t>> expected_combine_;
};

}  // namespace perf
