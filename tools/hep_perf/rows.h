// SPDX-License-Identifier: Apache-2.0
// Rows of a job in memory of the backend: written there and compared there, on a GPU by kernels, so
// that preparing and checking a case takes no longer than the case.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <vector>

#include "harness/memory.h"

namespace perf {

// Each row is told by where in the values it begins (row_start()), or by this: a row of zeros.
constexpr int32_t kZeroRow = -1;

class RowTable {
 public:
  // For the current device; work is done on `stream`. `values` is kept by reference.
  RowTable(const std::vector<uint16_t>& values, harness::Stream& stream);

  void fill(uint16_t* rows, const std::vector<int32_t>& starts, int hidden);

  // How many values differ.
  int64_t count_wrong(const uint16_t* rows, const std::vector<int32_t>& starts, int hidden);

 private:
  void prove_comparison();

  const std::vector<uint16_t>& values_;
  harness::Stream& stream_;
  harness::Buffer gpu_values_, gpu_counter_;  // cuda
};

}  // namespace perf
