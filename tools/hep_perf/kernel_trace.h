// SPDX-License-Identifier: Apache-2.0
// When the kernels of this process began and ended, by CUPTI, which is opened at run time.
//
// Of CUPTI's interface only what has not changed since CUDA 9 is used, and declared here: nobody needs
// its headers. Nothing of it is active unless a trace is being taken, because it slows down launches.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace perf {

class KernelTrace {
 public:
  struct Kernel {
    uint64_t start_ns, end_ns;
  };

  // The process's one.
  static KernelTrace& instance();

  // Tries it. Empty if kernels can be traced, otherwise why they cannot. Before the ranks run.
  std::string probe();

  // The process's kernels are recorded from start() to stop(), before which they must be done. Throw
  // std::runtime_error if CUPTI fails.
  void start();
  void stop();

  // What the last trace holds of a device, in order.
  std::vector<Kernel> kernels(int device);

 private:
  KernelTrace();

  static void request_buffer(uint8_t** buffer, size_t* bytes, size_t* max_records);
  static void complete_buffer(void* context, uint32_t stream, uint8_t* buffer, size_t bytes,
                              size_t valid_bytes);

  // Of CUPTI; all return CUptiResult.
  int (*register_callbacks_)(void (*)(uint8_t**, size_t*, size_t*),
                             void (*)(void*, uint32_t, uint8_t*, size_t, size_t)) = nullptr;
  int (*enable_)(int kind) = nullptr;
  int (*disable_)(int kind) = nullptr;
  int (*flush_all_)(uint32_t flag) = nullptr;
  int (*next_record_)(uint8_t* buffer, size_t valid_bytes, void** record) = nullptr;

  std::string refusal_;
  std::mutex mutex_;
  std::map<int, std::vector<Kernel>> kernels_;  // by device
};

}  // namespace perf
