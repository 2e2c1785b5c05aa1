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

template <typename T>
__device__ T expected_value(const GpuRows& expected, int32_t start, int column) {
  if (start < 0) return T{0};
  return static_cast<const T*>(expected.values)[int64_t{start} + column];
}

// T is an unsigned type of an element's size: rows are compared bit for bit.
template <typename T>
__global__ void fill_rows_kernel(const __grid_constant__ GpuRows expected, void* memory) {
  T* const rows = static_cast<T*>(memory);
  for (int64_t row = blockIdx.x; row < expected.count; row += gridDim.x) {
    const int32_t start = expected.starts[row];
    if (start < -1) continue;  // any row
    for (int column = threadIdx.x; column < expected.columns; column += blockDim.x) {
      rows[row * expected.columns + column] = expected_value<T>(expected, start, column);
    }
  }
}

template <typename T>
__global__ void count_wrong_rows_kernel(const __grid_constant__ GpuRows expected,
                                        const void* memory, unsigned long long* wrong) {
  const T* const rows = static_cast<const T*>(memory);
  unsigned long long mine = 0;
  for (int64_t row = blockIdx.x; row < expected.count; row += gridDim.x) {
    const int32_t start = expected.starts[row];
    if (start < -1) continue;  // any row
    for (int column = threadIdx.x; column < expected.columns; column += blockDim.x) {
      mine += rows[row * expected.columns + column] != expected_value<T>(expected, start, column);
    }
  }
  if (mine != 0) atomicAdd(wrong, mine);
}

__global__ void empty_kernel(const __grid_constant__ EmptyArgs) {}

__global__ void pause_kernel(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
}

template <typename... Args>
cudaError_t launch(void (*kernel)(Args...), int blocks, int threads, cudaStream_t stream,
                   Args... args) {
  void* arguments[] = {&args...};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(threads),
                          arguments, 0, stream);
}

}  // namespace

cudaError_t launch_fill_rows(const GpuRows& expected, void* rows, cudaStream_t stream) {
  const auto kernel = expected.element_bytes == 1   ? fill_rows_kernel<uint8_t>
                      : expected.element_bytes == 2 ? fill_rows_kernel<uint16_t>
                                                    : fill_rows_kernel<uint32_t>;
  return launch<GpuRows, void*>(kernel, kBlocks, kThreads, stream, expected, rows);
}

cudaError_t launch_count_wrong_rows(const GpuRows& expected, const void* rows,
                                    unsigned long long* wrong, cudaStream_t stream) {
  const auto kernel = expected.element_bytes == 1   ? count_wrong_rows_kernel<uint8_t>
                      : expected.element_bytes == 2 ? count_wrong_rows_kernel<uint16_t>
                                                    : count_wrong_rows_kernel<uint32_t>;
  return launch<GpuRows, const void*, unsigned long long*>(kernel, kBlocks, kThreads, stream,
                                                           expected, rows, wrong);
}

cudaError_t launch_pause(double microseconds, cudaStream_t stream) {
  constexpr double kCyclesPerMicrosecond = 1700;  // of an SM, more or less
  return launch(pause_kernel, 1, 1, stream,
                static_cast<long long>(microseconds * kCyclesPerMicrosecond));
}

cudaError_t launch_empty(cudaStream_t stream) {
  static const EmptyArgs args{};
  void* arguments[] = {const_cast<EmptyArgs*>(&args)};
  return cudaLaunchKernel(reinterpret_cast<const void*>(empty_kernel), dim3(1), dim3(1), arguments,
                          0, stream);
}

}  // namespace perf
