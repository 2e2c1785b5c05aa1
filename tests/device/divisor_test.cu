// SPDX-License-Identifier: Apache-2.0
// Division by multiplication.
#include <gtest/gtest.h>

#include "backend/cuda/kernels/common/warp.cuh"
#include "device.h"
#include "kernels.cuh"

namespace {

using device_test::Array;
using device_test::Wrong;
using hep::Divisor;

constexpr int kThreads = 256;

__device__ void expect_quotient(Wrong* wrong, int dividend, int divisor) {
  device_test::expect_equal(wrong, static_cast<uint64_t>(dividend) << 32 | divisor,
                            Divisor(divisor)(dividend), dividend / divisor);
}

// Divisors are numbers of experts, ranks, blocks, warps and selections.
constexpr int kMostUsed = 4096;

__global__ void divide_all_kernel(Wrong* wrong) {
  const int divisor = blockIdx.x + 1;
  for (int dividend = threadIdx.x; dividend < Divisor::kLimit; dividend += blockDim.x)
    expect_quotient(wrong, dividend, divisor);
}

TEST(Divisor, DividesEveryNumberByWhatItIsUsedFor) {
  const Array<Wrong> wrong(1);
  divide_all_kernel<<<kMostUsed, kThreads>>>(wrong.data());
  device_test::expect_none(wrong);
}

// The quotient does not fall when the dividend grows, because no rounded operation does. So if the
// first and the last dividend of a quotient give it, all between give it.
__global__ void divide_ends_kernel(Wrong* wrong) {
  const int divisor = blockIdx.x + 1;
  for (int64_t first = int64_t{threadIdx.x} * divisor; first < Divisor::kLimit;
       first += int64_t{blockDim.x} * divisor) {
    expect_quotient(wrong, first, divisor);
    expect_quotient(wrong, min(first + divisor, int64_t{Divisor::kLimit}) - 1, divisor);
  }
}

TEST(Divisor, DividesByEveryNumberBelowItsLimit) {
  const Array<Wrong> wrong(1);
  divide_ends_kernel<<<Divisor::kLimit - 1, 32>>>(wrong.data());
  device_test::expect_none(wrong);
}

}  // namespace
