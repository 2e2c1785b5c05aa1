// SPDX-License-Identifier: Apache-2.0
// What kernels of the tests share: threads of a grid, and what a kernel found wrong.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>

#include "device.h"

namespace device_test {

// How often a kernel found another result than the expected one, and an example.
struct Wrong {
  unsigned long long count;
  uint64_t input, actual, expected;
};

__device__ inline void expect_equal(Wrong* wrong, uint64_t input, uint64_t actual,
                                    uint64_t expected) {
  if (actual == expected || atomicAdd(&wrong->count, 1ull) != 0) return;
  wrong->input = input;
  wrong->actual = actual;
  wrong->expected = expected;
}

// Waits for the kernels, which found nothing wrong.
inline void expect_none(const Array<Wrong>& wrong) {
  expect_done();
  const Wrong found = wrong.values()[0];
  EXPECT_EQ(found.count, 0u) << std::hex << "of 0x" << found.input << " came 0x" << found.actual
                             << " instead of 0x" << found.expected;
}

// The threads of a grid, which share something out among them.
__device__ inline uint64_t grid_thread() { return blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; }
__device__ inline uint64_t grid_threads() { return gridDim.x * uint64_t{blockDim.x}; }

}  // namespace device_test
