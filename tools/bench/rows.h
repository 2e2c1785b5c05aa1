// SPDX-License-Identifier: Apache-2.0
// Writes and compares the rows of a job in memory of the backend. On a GPU kernels do both, so that
// preparing and checking a case takes no longer than the case.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <vector>

#include "gpu.h"
#include "harness/memory.h"
#include "inputs.h"

namespace bench {

// A row is told by where in the values it begins (row_start()), or by one of these.
constexpr int32_t kZeroRow = -1;
constexpr int32_t kAnyRow = -2;  // nothing is written there, and nothing compared

// Returns how many of `count` elements in host memory differ, bit for bit.
int64_t count_different(const void* a, const void* b, int64_t count, int element_bytes);

class RowTable {
 public:
  // Works on the current device and on `stream`. Keeps a reference to `values`.
  RowTable(const ValueTable& values, harness::Stream& stream);

  // Writes rows of `columns` elements of the table.
  void fill(void* rows, const std::vector<int32_t>& starts, int columns);

  // Returns how many elements differ.
  int64_t count_wrong(const void* rows, const std::vector<int32_t>& starts, int columns);

 private:
  void prove_comparison();
  GpuRows on_gpu(const harness::Buffer& starts, int columns) const;

  const ValueTable& values_;
  harness::Stream& stream_;
  harness::Buffer gpu_values_, gpu_counter_;  // cuda
};

}  // namespace bench
