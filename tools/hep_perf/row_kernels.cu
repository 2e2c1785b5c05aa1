// SPDX-License-Identifier: Apache-2.0
#include "row_kernels.h"

namespace perf {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 1056;  // a few for each SM
constexpr int kEmptyArgsBytes = 2048;

struct EmptyArgs {
  char bytes[kEmptyArgsBytes];
};

__device__ uint16_t expected_value(const GpuRows& expected, int32_t start, int h) {
  return start < 0 ? uint16_t{0} : expected.values[start + h];
}

__global__ void fill_rows_kernel(const __grid_constant__ GpuRows expected, uint16_t* rows) {
  for (int64_t row = blockIdx.x; row < expected.count; row += gridDim.x) {
    const int32_t start = expected.starts[row];
    for (int h = threadIdx.x; h < expected.hidden; h += blockDim.x) {
      rows[row * expected.hidden + h] = expected_value(expected, start, h);
    }
  }
}

__global__ void count_wrong_rows_kernel(const __grid_constant__ GpuRows expected,
                                        const uint16_t* rows, unsigned long long* wrong) {
  unsigned long long mine = 0;
  for (int64_t row = blockIdx.x; row < expected.count; row += gridDim.x) {
    const int32_t start = expected.starts[row];
    for (int h = threadIdx.x; h < expected.hidden; h += blockDim.x) {
      mine += rows[row * expected.hidden + h] != expected_value(expected, start, h);
    }
  }
  if (mine != 0) atomicAdd(wrong, mine);
}

__global__ void empty_kernel(const __grid_constant__ EmptyArgs) {}

template <typename... Args>
cudaError_t launch(void (*kernel)(Args...), int blocks, int threads, cudaStream_t stream,
                   Args... args) {
  void* arguments[] = {&args...};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(threads),
                          arguments, 0, stream);
}

}  // namespace

cudaError_t launch_fill_rows(const GpuRows& expected, uint16_t* rows, cudaStream_t stream) {
  return launch<GpuRows, uint16_t*>(fill_rows_kernel, kBlocks, kThreads, stream, expected, rows);
}

cudaError_t launch_count_wrong_rows(const GpuRows& expected, const uint16_t* rows,
                                    unsigned long long* wrong, cudaStream_t stream) {
  return launch<GpuRows, const uint16_t*, unsigned long long*>(
      count_wrong_rows_kernel, kBlocks, kThreads, stream, expected, rows, wrong);
}

cudaError_t launch_empty(cudaStream_t stream) {
  static const EmptyArgs args{};
  void* arguments[] = {const_cast<EmptyArgs*>(&args)};
  return cudaLaunchKernel(reinterpret_cast<const void*>(empty_kernel), dim3(1), dim3(1), arguments,
                          0, stream);
}

}  // namespace perf
