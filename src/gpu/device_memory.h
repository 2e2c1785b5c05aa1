// SPDX-License-Identifier: Apache-2.0
// Owners of CUDA memory and of the calling thread's current device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/status.h"
#include "gpu/context.h"
#include "gpu/driver.h"
#include "gpu/virtual_memory.h"

namespace hep {

// Makes a device current as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : result_(cudaGetDevice(&previous_)) {
    if (result_ == cudaSuccess && previous_ != device) {
      result_ = cudaSetDevice(device);
      switched_ = result_ == cudaSuccess;
    }
  }

  // Changes nothing yet: the caller may switch devices, and the destructor switches back.
  DeviceGuard() : result_(cudaGetDevice(&previous_)), switched_(result_ == cudaSuccess) {}

  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  ~DeviceGuard() {
    if (switched_) cudaSetDevice(previous_);
  }

  Status status() const { return cuda_status(result_, "making the device current"); }

 private:
  int previous_ = 0;
  cudaError_t result_;
  bool switched_ = false;
};

// Zeroed memory of a device. Freeing it waits for no kernel, so kernels that use it must have
// ended. Only a driver without virtual memory management may wait for the whole device.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory();

  Status allocate(int device, size_t bytes);

  // Copies bytes of host memory to an offset, and waits for that alone. The device must be current.
  Status write(size_t offset, const void* from, size_t bytes);

  void* get() const { return plain_ != nullptr ? plain_ : virtual_.address(); }

 private:
  Status allocate_plain(int device, size_t bytes);

  VirtualMemory virtual_;
  void* plain_ = nullptr;  // of cudaMalloc, in the context
  std::shared_ptr<DeviceContext> context_;
};

// Zeroed host memory that the current device can reach. It stays readable whatever happens to the
// device. Freeing it would wait for the device, so a block that is given back is kept for the next
// one of the same size.
class MappedMemory {
 public:
  MappedMemory() = default;
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;
  ~MappedMemory();

  Status allocate(size_t bytes);

  void* get() const { return address_; }
  void* device_address() const { return device_address_; }

 private:
  uint64_t context_ = 0;
  size_t bytes_ = 0;
  void* address_ = nullptr;
  void* device_address_ = nullptr;
};

}  // namespace hep
