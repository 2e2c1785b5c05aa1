// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include <chrono>
#include <condition_variable>
#include <fstream>
#include <mutex>

#include "cuda_check.h"
#include "gpu.h"

namespace bench {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 1056;  // a few for each SM

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

// Returns the first word of the file that looks like 580.95.05.
std::string kernel_module_version() {
  std::ifstream file("/proc/driver/nvidia/version");
  for (std::string word; file >> word;) {
    if (word.find('.') != std::string::npos &&
        word.find_first_not_of("0123456789.") == std::string::npos) {
      return word;
    }
  }
  return "unknown";
}

}  // namespace

GpuInfo gpu_info() {
  GpuInfo info;
  if (cudaGetDeviceCount(&info.count) != cudaSuccess || info.count == 0) return GpuInfo();
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  int version = 0;
  check(cudaRuntimeGetVersion(&version), "cudaRuntimeGetVersion");
  info.name = properties.name;
  info.driver = kernel_module_version();
  info.cuda = std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  return info;
}

struct Gate::State {
  std::mutex mutex;
  std::condition_variable changed;
  bool is_open = false;

  static void wait(void* argument) {
    const std::unique_ptr<std::shared_ptr<State>> owned(
        static_cast<std::shared_ptr<State>*>(argument));
    State& state = **owned;
    std::unique_lock<std::mutex> lock(state.mutex);
    state.changed.wait_for(lock, std::chrono::seconds(10), [&] { return state.is_open; });
  }
};

Gate::Gate(hepStream_t stream) : state_(std::make_shared<State>()) {
  // The stream's part may outlive this object.
  auto owned = std::make_unique<std::shared_ptr<State>>(state_);
  check(cudaLaunchHostFunc(stream, State::wait, owned.get()), "cudaLaunchHostFunc");
  owned.release();
}

void Gate::open() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->is_open = true;
  state_->changed.notify_all();
}

void fill_rows(const GpuRows& expected, void* rows, hepStream_t stream) {
  check(launch_fill_rows(expected, rows, stream), "fill rows");
  check(cudaStreamSynchronize(stream), "fill rows");
}

int64_t count_wrong_rows(const GpuRows& expected, const void* rows, unsigned long long* counter,
                         hepStream_t stream) {
  unsigned long long count = 0;
  check(cudaMemsetAsync(counter, 0, sizeof *counter, stream), "cudaMemsetAsync");
  check(launch_count_wrong_rows(expected, rows, counter, stream), "count wrong rows");
  check(cudaMemcpyAsync(&count, counter, sizeof count, cudaMemcpyDeviceToHost, stream),
        "cudaMemcpyAsync");
  check(cudaStreamSynchronize(stream), "count wrong rows");
  return static_cast<int64_t>(count);
}

void pause(hepStream_t stream, double microseconds) {
  check(launch_pause(microseconds, stream), "launch of a pause");
}

PinnedMemory::PinnedMemory(size_t bytes) {
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, bytes, cudaHostAllocPortable), "cudaHostAlloc");
  data_ = static_cast<char*>(memory);
}

PinnedMemory::~PinnedMemory() { cudaFreeHost(data_); }

}  // namespace bench
