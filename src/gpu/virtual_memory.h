// SPDX-License-Identifier: Apache-2.0
// Device memory of the driver's virtual memory management.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/status.h"
#include "gpu/context.h"

namespace hep {

// A piece of physical memory, of this process or imported, and the address at which it is mapped.
class VirtualMemory {
 public:
  VirtualMemory() = default;
  VirtualMemory(const VirtualMemory&) = delete;
  VirtualMemory& operator=(const VirtualMemory&) = delete;

  // Waits for no kernel, so kernels that use the memory must have ended.
  ~VirtualMemory();

  // Allocates zeroed memory of the device that can be exported as `type`.
  Status create(int device, size_t bytes, CUmemAllocationHandleType type);

  // Maps the export of a peer for access by `device` of this process, wherever the memory lies.
  Status import(int device, void* exported, CUmemAllocationHandleType type, size_t bytes);

  // Borrows memory that the caller has made, and keeps mapped.
  Status borrow(int device, uintptr_t address, size_t bytes);

  Status export_to(void* exported, CUmemAllocationHandleType type) const;

  void* address() const { return reinterpret_cast<void*>(address_); }
  size_t bytes() const { return bytes_; }
  CUdevice device() const { return context_->device(); }

 private:
  Status map();

  std::shared_ptr<DeviceContext> context_;
  CUmemGenericAllocationHandle memory_ = 0;
  bool has_memory_ = false;
  CUdeviceptr address_ = 0;
  bool reserved_ = false, mapped_ = false;
  size_t bytes_ = 0;
};

}  // namespace hep
