// SPDX-License-Identifier: Apache-2.0
// Device memory of cudaMalloc, exported as a cudaIpc handle. Other processes must unmap it before
// it is freed. Ranks of one process share its ownership instead.
#include <cstring>

#include "gpu/context.h"
#include "memory/kind.h"
#include "protocol/shape.h"

namespace hep {
namespace {

static_assert(sizeof(CUipcMemHandle) == sizeof(WindowHandle::exported));

// The driver exports whole blocks of this size. Smaller memory would share a block with other
// memory.
constexpr size_t kBlockBytes = 2 * 1024 * 1024;

class IpcAllocation : public Allocation {
 public:
  ~IpcAllocation() override {
    if (address_ == 0 || is_borrowed_ || !context_->check_not_reset().ok()) return;
    const CurrentContext current(*context_);
    context_->driver().MemFree(address_);
  }

  Status allocate(int device, size_t bytes) {
    HEP_TRY(DeviceContext::open(device, &context_));
    const CurrentContext current(*context_);
    HEP_TRY(current.status());
    bytes_ = align_up(bytes, kBlockBytes);
    const CUresult allocated = context_->driver().MemAlloc(&address_, bytes_);
    HEP_TRY(allocation_status(driver_status(allocated, "cuMemAlloc"), device, bytes_));
    HEP_DRIVER_TRY(context_->driver(), IpcGetMemHandle, &exported_, address_);
    return context_->zero(address_, bytes_);
  }

  Status borrow(int device, uintptr_t address, size_t bytes) {
    HEP_TRY(DeviceContext::open(device, &context_));
    const CurrentContext current(*context_);
    HEP_TRY(current.status());
    is_borrowed_ = true;
    address_ = address;
    bytes_ = bytes;
    HEP_DRIVER_TRY(context_->driver(), IpcGetMemHandle, &exported_, address_);
    return Status();
  }

  void describe(WindowHandle* handle) const override {
    handle->mapped_bytes = bytes_;
    std::memcpy(handle->exported, &exported_, sizeof exported_);
  }

  void* address() const override { return reinterpret_cast<void*>(address_); }
  const DeviceContext& context() const { return *context_; }

 private:
  std::shared_ptr<DeviceContext> context_;
  CUdeviceptr address_ = 0;
  bool is_borrowed_ = false;
  size_t bytes_ = 0;
  CUipcMemHandle exported_{};
};

// Memory of another process.
class IpcMapping : public Mapping {
 public:
  ~IpcMapping() override {
    if (address_ == 0 || !context_->check_not_reset().ok()) return;
    const CurrentContext current(*context_);
    context_->driver().IpcCloseMemHandle(address_);
  }

  Status map(int device, const WindowHandle& handle) {
    HEP_TRY(DeviceContext::open(device, &context_));
    const CurrentContext current(*context_);
    HEP_TRY(current.status());
    CUipcMemHandle exported;
    std::memcpy(&exported, handle.exported, sizeof exported);
    HEP_DRIVER_TRY(context_->driver(), IpcOpenMemHandle, &address_, exported,
                   CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
    return Status();
  }

  void* address() const override { return reinterpret_cast<void*>(address_); }

 private:
  std::shared_ptr<DeviceContext> context_;
  CUdeviceptr address_ = 0;
};

// Memory of this process. An IPC handle cannot be opened by the process that made it, and need not
// be.
class LocalMapping : public Mapping {
 public:
  Status map(int device, const std::shared_ptr<Allocation>& local) {
    // All windows of a communicator are of one kind.
    memory_ = std::static_pointer_cast<IpcAllocation>(local);
    HEP_TRY(DeviceContext::open(device, &context_));
    const DeviceContext& peer = memory_->context();
    if (peer.device() == context_->device()) return Status();

    const DriverTable& driver = context_->driver();
    int reachable = 0;
    HEP_DRIVER_TRY(driver, DeviceCanAccessPeer, &reachable, context_->device(), peer.device());
    if (reachable == 0)
      return error(hepErrorUnreachable, "device %d cannot access device %d", context_->device(),
                   peer.device());
    const CurrentContext current(*context_);
    HEP_TRY(current.status());
    const CUresult enabled = driver.CtxEnablePeerAccess(peer.get(), 0);
    if (enabled == CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED) return Status();
    return driver_status(enabled, "cuCtxEnablePeerAccess");
  }

  void* address() const override { return memory_->address(); }

 private:
  std::shared_ptr<DeviceContext> context_;
  std::shared_ptr<IpcAllocation> memory_;
};

Status allocate_ipc(int device, size_t bytes, std::shared_ptr<Allocation>* out) {
  auto allocation = std::make_shared<IpcAllocation>();
  HEP_TRY(allocation->allocate(device, bytes));
  *out = std::move(allocation);
  return Status();
}

Status borrow_ipc(int device, uintptr_t address, size_t bytes, std::shared_ptr<Allocation>* out) {
  auto allocation = std::make_shared<IpcAllocation>();
  HEP_TRY(allocation->borrow(device, address, bytes));
  *out = std::move(allocation);
  return Status();
}

template <typename Kind, typename Source>
Status map_as(int device, const Source& source, std::unique_ptr<Mapping>* out) {
  auto mapping = std::make_unique<Kind>();
  HEP_TRY(mapping->map(device, source));
  *out = std::move(mapping);
  return Status();
}

Status map_ipc(int device, const PeerMemory& peer, std::unique_ptr<Mapping>* out) {
  return peer.local ? map_as<LocalMapping>(device, peer.local, out)
                    : map_as<IpcMapping>(device, peer.handle, out);
}

}  // namespace

const MemoryKindOperations kCudaIpcOperations = {MemoryKind::cuda_ipc, hepBackendCuda, allocate_ipc,
                                                 map_ipc, borrow_ipc};

}  // namespace hep
