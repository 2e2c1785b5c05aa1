// SPDX-License-Identifier: Apache-2.0
#include "kernel_trace.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <type_traits>

namespace perf {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;
constexpr size_t kBufferAlignment = 8;

// Of CUptiResult, CUpti_ActivityKind and CUpti_ActivityFlag.
constexpr int kSuccess = 0;
constexpr int kConcurrentKernel = 10;
constexpr uint32_t kFlushForced = 1;

// How CUpti_ActivityKernel4 to CUpti_ActivityKernel10 begin.
struct KernelRecord {
  uint32_t kind;
  uint8_t cache_config, shared_memory_config;
  uint16_t registers_per_thread;
  int32_t cache_requested, cache_executed;
  uint64_t start, end, completed;
  uint32_t device;
};
static_assert(offsetof(KernelRecord, start) == 16 && offsetof(KernelRecord, device) == 40);

// Where the loader looks, and then where toolkits put it.
std::vector<std::string> candidates() {
  std::vector<std::string> folders = {""};
  const char* const home = std::getenv("CUDA_HOME");
  for (const std::string& root : {std::string(home ? home : ""), std::string("/usr/local/cuda")}) {
    if (root.empty()) continue;
    for (const char* folder : {"/lib64/", "/lib/", "/extras/CUPTI/lib64/"}) {
      folders.push_back(root + folder);
    }
  }
  std::vector<std::string> paths;
  for (const std::string& folder : folders) {
    for (const char* name : {"libcupti.so.13", "libcupti.so.12", "libcupti.so"}) {
      paths.push_back(folder + name);
    }
  }
  return paths;
}

void require_success(int result, const char* call) {
  if (result == kSuccess) return;
  throw std::runtime_error(std::string(call) + " failed with " + std::to_string(result));
}

}  // namespace

KernelTrace& KernelTrace::instance() {
  // Never destroyed: CUPTI's threads may outlive everything else.
  static KernelTrace* const trace = new KernelTrace;
  return *trace;
}

KernelTrace::KernelTrace() {
  void* library = nullptr;
  for (const std::string& path : candidates()) {
    library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
  }
  if (library == nullptr) {
    refusal_ = "libcupti.so was not found by the loader, in $CUDA_HOME or in /usr/local/cuda";
    return;
  }
  const auto find = [&](const char* name, auto* function) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(::dlsym(library, name));
    if (*function == nullptr) refusal_ = std::string("CUPTI has no function ") + name;
  };
  find("cuptiActivityRegisterCallbacks", &register_callbacks_);
  find("cuptiActivityEnable", &enable_);
  find("cuptiActivityDisable", &disable_);
  find("cuptiActivityFlushAll", &flush_all_);
  find("cuptiActivityGetNextRecord", &next_record_);
  if (!refusal_.empty()) return;
  const int result = register_callbacks_(request_buffer, complete_buffer);
  if (result != kSuccess) {
    refusal_ = "cuptiActivityRegisterCallbacks failed with " + std::to_string(result);
  }
}

std::string KernelTrace::probe() {
  if (!refusal_.empty()) return refusal_;
  try {
    start();
    stop();
  } catch (const std::exception& exception) {
    refusal_ = exception.what();
  }
  return refusal_;
}

void KernelTrace::start() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    kernels_.clear();
  }
  require_success(enable_(kConcurrentKernel), "cuptiActivityEnable");
}

void KernelTrace::stop() {
  // The kernels are done, but their records may not be: the forced flush takes those that remain.
  const int flushed = flush_all_(0);
  const int disabled = disable_(kConcurrentKernel);
  require_success(flushed, "cuptiActivityFlushAll");
  require_success(disabled, "cuptiActivityDisable");
  require_success(flush_all_(kFlushForced), "cuptiActivityFlushAll");
}

std::vector<KernelTrace::Kernel> KernelTrace::kernels(int device) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Kernel> kernels = kernels_[device];
  std::sort(kernels.begin(), kernels.end(),
            [](const Kernel& a, const Kernel& b) { return a.start_ns < b.start_ns; });
  return kernels;
}

void KernelTrace::request_buffer(uint8_t** buffer, size_t* bytes, size_t* max_records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(kBufferAlignment, kBufferBytes));
  *bytes = *buffer != nullptr ? kBufferBytes : 0;
  *max_records = 0;
}

void KernelTrace::complete_buffer(void*, uint32_t, uint8_t* buffer, size_t, size_t valid_bytes) {
  KernelTrace& self = instance();
  {
    std::lock_guard<std::mutex> lock(self.mutex_);
    for (void* next = nullptr;
         self.next_record_(buffer, valid_bytes, &next) == kSuccess && next != nullptr;) {
      KernelRecord record;
      std::memcpy(&record, next, sizeof record);
      if (record.kind != kConcurrentKernel || record.start == 0) continue;
      self.kernels_[static_cast<int>(record.device)].push_back({record.start, record.end});
    }
  }
  std::free(buffer);
}

}  // namespace perf
