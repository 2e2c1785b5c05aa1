// SPDX-License-Identifier: Apache-2.0
// Device memory of the driver's virtual memory management, exported as a file descriptor or as a
// fabric handle. The two differ only in what is exported.
#include <fcntl.h>

#include <cstring>

#include "gpu/virtual_memory.h"
#include "memory/kind.h"

namespace hep {
namespace {

static_assert(sizeof(CUmemFabricHandle) == sizeof(WindowHandle::exported));

class VirtualAllocation : public Allocation {
 public:
  Status allocate_descriptor(int device, size_t bytes) {
    HEP_TRY(memory_.create(device, bytes, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    return export_descriptor();
  }

  Status borrow_descriptor(int device, uintptr_t address, size_t bytes) {
    HEP_TRY(memory_.borrow(device, address, bytes));
    return export_descriptor();
  }

  Status allocate_fabric(int device, size_t bytes) {
    HEP_TRY(memory_.create(device, bytes, CU_MEM_HANDLE_TYPE_FABRIC));
    return memory_.export_to(&fabric_, CU_MEM_HANDLE_TYPE_FABRIC);
  }

  Status borrow_fabric(int device, uintptr_t address, size_t bytes) {
    HEP_TRY(memory_.borrow(device, address, bytes));
    return memory_.export_to(&fabric_, CU_MEM_HANDLE_TYPE_FABRIC);
  }

  void describe(WindowHandle* handle) const override {
    handle->mapped_bytes = memory_.bytes();
    std::memcpy(handle->exported, &fabric_, sizeof fabric_);
  }

  void* address() const override { return memory_.address(); }
  CUdevice device() const { return memory_.device(); }

 private:
  Status export_descriptor() {
    int descriptor = -1;
    HEP_TRY(memory_.export_to(&descriptor, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    descriptor_ = Descriptor(descriptor);
    if (::fcntl(descriptor, F_SETFD, FD_CLOEXEC) != 0)
      return system_error("the CUDA driver exported no usable file descriptor");
    return Status();
  }

  VirtualMemory memory_;
  CUmemFabricHandle fabric_{};
};

// Memory of this process and device, at the address that it already has. Kernels that run at the
// same time must not signal through two addresses of the same memory: the PTX memory model orders
// accesses through virtual aliases by a proxy fence only.
class SharedMapping : public Mapping {
 public:
  explicit SharedMapping(const std::shared_ptr<Allocation>& memory) : memory_(memory) {}

  void* address() const override { return memory_->address(); }

 private:
  std::shared_ptr<Allocation> memory_;
};

class VirtualMapping : public Mapping {
 public:
  Status map_descriptor(int device, const PeerMemory& peer) {
    // A handle of this type is the number itself in place of a pointer. The caller keeps owning it.
    void* const number = reinterpret_cast<void*>(static_cast<uintptr_t>(peer.descriptor));
    return memory_.import(device, number, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                          peer.handle.mapped_bytes);
  }

  Status map_fabric(int device, const PeerMemory& peer) {
    CUmemFabricHandle fabric;
    std::memcpy(&fabric, peer.handle.exported, sizeof fabric);
    return memory_.import(device, &fabric, CU_MEM_HANDLE_TYPE_FABRIC, peer.handle.mapped_bytes);
  }

  void* address() const override { return memory_.address(); }

 private:
  VirtualMemory memory_;
};

template <auto kAllocate>
Status allocate(int device, size_t bytes, std::shared_ptr<Allocation>* out) {
  auto allocation = std::make_shared<VirtualAllocation>();
  HEP_TRY(((*allocation).*kAllocate)(device, bytes));
  *out = std::move(allocation);
  return Status();
}

template <auto kBorrow>
Status borrow(int device, uintptr_t address, size_t bytes, std::shared_ptr<Allocation>* out) {
  auto allocation = std::make_shared<VirtualAllocation>();
  HEP_TRY(((*allocation).*kBorrow)(device, address, bytes));
  *out = std::move(allocation);
  return Status();
}

template <auto kMap>
Status map(int device, const PeerMemory& peer, std::unique_ptr<Mapping>* out) {
  // All windows of a communicator are of one kind.
  if (peer.local && static_cast<VirtualAllocation&>(*peer.local).device() == device) {
    *out = std::make_unique<SharedMapping>(peer.local);
    return Status();
  }
  auto mapping = std::make_unique<VirtualMapping>();
  HEP_TRY(((*mapping).*kMap)(device, peer));
  *out = std::move(mapping);
  return Status();
}

}  // namespace

const MemoryKindOperations kCudaDescriptorOperations = {
    MemoryKind::cuda_descriptor, hepBackendCuda, allocate<&VirtualAllocation::allocate_descriptor>,
    map<&VirtualMapping::map_descriptor>, borrow<&VirtualAllocation::borrow_descriptor>};

const MemoryKindOperations kCudaFabricOperations = {
    MemoryKind::cuda_fabric, hepBackendCuda, allocate<&VirtualAllocation::allocate_fabric>,
    map<&VirtualMapping::map_fabric>, borrow<&VirtualAllocation::borrow_fabric>};

}  // namespace hep
