// SPDX-License-Identifier: Apache-2.0
// Memory of more bytes than a machine may have.
#pragma once

#include <hybridep.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>
#include <vector>

#include "harness/memory.h"
#include "harness/world.h"

// On the cuda backend plain memory. On the host backend addresses alone: pages are zero, and take
// memory when they are written. With a period all but the first and the last of its length, at
// least, are one and the same memory, so that even writing all of it takes little; its contents are
// then undefined.
class VastMemory {
 public:
  VastMemory(int64_t bytes, int64_t period = 0) : bytes_(bytes), period_(period) {
    if (harness::world().backend() == hepBackendCuda) {
      buffer_ = harness::Buffer(hepBackendCuda, bytes);
      data_ = buffer_.as<char>();
      return;
    }
    data_ = reserve(bytes);
    if (data_ == nullptr) throw std::bad_alloc();
    if (period == 0) return;
    const int file = ::memfd_create("shared rows", MFD_CLOEXEC);
    bool shared = file >= 0 && ::ftruncate(file, period) == 0;
    for (int64_t at = period; shared && is_shared(at); at += period)
      shared = ::mmap(data_ + at, period, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file,
                      0) != MAP_FAILED;
    if (file >= 0) ::close(file);
    if (!shared) throw std::bad_alloc();
  }
  ~VastMemory() {
    if (buffer_.data() == nullptr) ::munmap(data_, bytes_);
  }
  VastMemory(const VastMemory&) = delete;
  VastMemory& operator=(const VastMemory&) = delete;

  static bool available(int64_t bytes) {
    if (harness::world().backend() == hepBackendCuda) return true;
    char* const data = reserve(bytes);
    if (data != nullptr) ::munmap(data, bytes);
    return data != nullptr;
  }

  bool is_shared(int64_t at) const {
    return buffer_.data() == nullptr && period_ > 0 && at >= period_ &&
           at / period_ < bytes_ / period_ - 1;
  }

  template <typename T = char>
  T* data() const {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  std::vector<T> read(int64_t index, int64_t count) const {
    std::vector<T> values(count);
    harness::download(harness::world().backend(), values.data(), data<T>() + index,
                      count * sizeof(T));
    return values;
  }
  template <typename T>
  void write(int64_t index, const std::vector<T>& values) {
    harness::upload(harness::world().backend(), data<T>() + index, values.data(),
                    values.size() * sizeof(T));
  }

 private:
  static char* reserve(int64_t bytes) {
    void* const data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return data == MAP_FAILED ? nullptr : static_cast<char*>(data);
  }

  const int64_t bytes_, period_;
  char* data_ = nullptr;
  harness::Buffer buffer_;
};
