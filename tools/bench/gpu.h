// SPDX-License-Identifier: Apache-2.0
// The functions of CUDA that the benchmarks need. gpu_cuda.cu has them, or gpu_none.cc in a build
// without CUDA. They throw std::runtime_error if they fail.
#pragma once

#include <hybridep.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace bench {

struct GpuInfo {
  int count = 0;  // that this process sees
  std::string name;
  std::string driver;  // of the kernel module
  std::string cuda;    // of the runtime
};
GpuInfo gpu_info();

// A gate holds back the work that follows it on a stream until it is opened. The host never delays
// work that was enqueued in full before. The gate opens by itself after ten seconds.
class Gate {
 public:
  explicit Gate(hepStream_t stream);
  ~Gate() { open(); }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;
  void open();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

// Rows that are stretches of a table of values; all pointers are memory of the current device.
struct GpuRows {
  const void* values;
  const int32_t* starts;  // [count] in the values; -1: a row of zeros, -2: any row
  int64_t count;
  int columns;        // elements of a row
  int element_bytes;  // 1, 2 or 4
};
// Both wait until the stream is done.
void fill_rows(const GpuRows& expected, void* rows, hepStream_t stream);
int64_t count_wrong_rows(const GpuRows& expected, const void* rows, unsigned long long* counter,
                         hepStream_t stream);

// Lets a stream do nothing for about this long.
void pause(hepStream_t stream, double microseconds);

// Host memory that a GPU reads and writes at full speed.
class PinnedMemory {
 public:
  explicit PinnedMemory(size_t bytes);
  ~PinnedMemory();
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  char* data() const { return data_; }

 private:
  char* data_ = nullptr;
};

}  // namespace bench
