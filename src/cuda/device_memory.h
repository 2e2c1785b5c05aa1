// SPDX-License-Identifier: Apache-2.0
// Owners of CUDA memory and of the calling thread's current device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/driver.h"
#include "status.h"

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

  // Leaves the device as it is, for a caller that will switch.
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

// Zeroed memory of the current device.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() { cudaFree(address_); }

  Status allocate(size_t bytes) {
    HEP_CUDA_TRY(cudaMalloc(&address_, bytes));
    return on_own_stream([&](cudaStream_t stream) {
      return cuda_status(cudaMemsetAsync(address_, 0, bytes, stream), "cudaMemsetAsync");
    });
  }

  // Copies bytes of host memory to an offset, and waits for that alone.
  Status write(size_t offset, const void* from, size_t bytes) {
    return on_own_stream([&](cudaStream_t stream) {
      return cuda_status(cudaMemcpyAsync(static_cast<char*>(address_) + offset, from, bytes,
                                         cudaMemcpyHostToDevice, stream),
                         "cudaMemcpyAsync");
    });
  }

  void* get() const { return address_; }

 private:
  // The default stream may wait for kernels that wait for a peer.
  template <typename Enqueue>
  static Status on_own_stream(Enqueue enqueue) {
    cudaStream_t stream;
    HEP_CUDA_TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    Status status = enqueue(stream);
    if (status.ok()) status = cuda_status(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    cudaStreamDestroy(stream);
    return status;
  }

  void* address_ = nullptr;
};

// Zeroed host memory that the current device can reach at the same address.
class MappedMemory {
 public:
  MappedMemory() = default;
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;
  ~MappedMemory() { cudaFreeHost(address_); }

  Status allocate(size_t bytes);

  void* get() const { return address_; }

 private:
  void* address_ = nullptr;
};

}  // namespace hep
