// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include <chrono>
#include <condition_variable>
#include <fstream>
#include <mutex>

#include "cuda_check.h"
#include "gpu.h"
#include "row_kernels.h"

namespace perf {
namespace {

// The first word of the file that looks like 580.95.05.
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

void launch_empty_kernel(hepStream_t stream) {
  check(launch_empty(stream), "launch of an empty kernel");
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

}  // namespace perf
