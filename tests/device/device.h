// SPDX-License-Identifier: Apache-2.0
// Arrays in device memory, and kernels that are waited for.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace device_test {

#define EXPECT_CUDA(call) device_test::expect_success(call, #call)

inline void expect_success(cudaError_t error, const char* call) {
  EXPECT_EQ(error, cudaSuccess) << call << ": " << cudaGetErrorString(error);
}

// An array in device memory, zero at first.
template <typename T>
class Array {
 public:
  explicit Array(size_t count) : count_(count) {
    if (count == 0) return;
    EXPECT_CUDA(cudaMalloc(&data_, count * sizeof(T)));
    EXPECT_CUDA(cudaMemset(data_, 0, count * sizeof(T)));
  }
  explicit Array(const std::vector<T>& values) : Array(values.size()) {
    if (values.empty()) return;
    EXPECT_CUDA(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyDefault));
  }
  ~Array() { cudaFree(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  T* data() const { return data_; }
  std::vector<T> values() const {
    std::vector<T> values(count_);
    EXPECT_CUDA(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDefault));
    return values;
  }

 private:
  const size_t count_;
  T* data_ = nullptr;
};

// Waits for the kernels that were launched.
inline void expect_done() {
  EXPECT_CUDA(cudaGetLastError());
  EXPECT_CUDA(cudaDeviceSynchronize());
}

}  // namespace device_test
