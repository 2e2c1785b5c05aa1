// SPDX-License-Identifier: Apache-2.0
// Compares memory where it is, so that tests need not bring every output to the host.
#include <cstdint>

#include "compare.h"

namespace harness {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 64;

__device__ unsigned long long differs(uint4 a, uint4 b) {
  return a.x != b.x || a.y != b.y || a.z != b.z || a.w != b.w;
}

__global__ void count_differences_kernel(const char* a, const char* b, size_t bytes,
                                         unsigned long long* counter) {
  const size_t first = blockIdx.x * size_t{kThreads} + threadIdx.x;
  const size_t threads = gridDim.x * size_t{kThreads};
  const size_t words = bytes / sizeof(uint4);
  unsigned long long count = 0;
  for (size_t i = first; i < words; i += threads)
    count += differs(reinterpret_cast<const uint4*>(a)[i], reinterpret_cast<const uint4*>(b)[i]);
  for (size_t i = words * sizeof(uint4) + first; i < bytes; i += threads) count += a[i] != b[i];
  if (count != 0) atomicAdd(counter, count);
}

}  // namespace

cudaError_t launch_count_differences(const void* a, const void* b, size_t bytes, uint64_t* counter,
                                     cudaStream_t stream) {
  const char *left = static_cast<const char*>(a), *right = static_cast<const char*>(b);
  auto* count = reinterpret_cast<unsigned long long*>(counter);
  void* arguments[] = {&left, &right, &bytes, &count};
  return cudaLaunchKernel(reinterpret_cast<const void*>(count_differences_kernel), dim3(kBlocks),
                          dim3(kThreads), arguments, 0, stream);
}

}  // namespace harness
