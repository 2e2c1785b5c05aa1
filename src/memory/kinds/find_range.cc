// SPDX-License-Identifier: Apache-2.0
// Finds out what kind of memory a pointer of the caller's leads to, and whether others can map it.
#include <cinttypes>

#include "gpu/context.h"
#include "memory/kind.h"

namespace hep {
namespace {

Status check_belongs(const DriverTable& driver, int device, CUdeviceptr address) {
  CUmemorytype type{};
  unsigned int managed = 0;
  int ordinal = -1;
  if (driver.PointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address) !=
          CUDA_SUCCESS ||
      driver.PointerGetAttribute(&managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, address) !=
          CUDA_SUCCESS ||
      driver.PointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address) !=
          CUDA_SUCCESS ||
      type != CU_MEMORYTYPE_DEVICE)
    return error(hepErrorInvalidArgument, "pointer 0x%llx is not device memory", address);
  if (managed != 0)
    return error(hepErrorUnsupported, "pointer 0x%llx is managed memory, which peers cannot map",
                 address);
  if (ordinal != device)
    return error(hepErrorInvalidArgument,
                 "pointer 0x%llx is on device %d, but the rank is on device %d", address, ordinal,
                 device);
  return Status();
}

// Returns by which handles memory of cuMemCreate can be passed on.
Status virtual_kind(const DriverTable& driver, CUmemGenericAllocationHandle memory,
                    bool several_hosts, MemoryKind* kind) {
  CUmemAllocationProp properties{};
  HEP_DRIVER_TRY(driver, MemGetAllocationPropertiesFromHandle, &properties, memory);
  const int types = properties.requestedHandleTypes;
  if ((types & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) != 0 && !several_hosts) {
    *kind = MemoryKind::cuda_descriptor;
    return Status();
  }
  *kind = MemoryKind::cuda_fabric;
  if ((types & CU_MEM_HANDLE_TYPE_FABRIC) != 0) return Status();
  return error(
      hepErrorUnsupported,
      "the memory was created by cuMemCreate without handles that can be passed on: it "
      "needs requestedHandleTypes with %s",
      several_hosts ? "CU_MEM_HANDLE_TYPE_FABRIC" : "CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR");
}

Status kind_of(const DriverTable& driver, CUdeviceptr address, bool several_hosts,
               MemoryKind* kind) {
  CUmemGenericAllocationHandle memory;
  if (driver.MemRetainAllocationHandle(&memory, reinterpret_cast<void*>(address)) == CUDA_SUCCESS) {
    const Status found = virtual_kind(driver, memory, several_hosts, kind);
    driver.MemRelease(memory);
    return found;
  }
  *kind = MemoryKind::cuda_ipc;
  int shareable = 0;
  HEP_DRIVER_TRY(driver, PointerGetAttribute, &shareable,
                 CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, address);
  if (shareable == 0)
    return error(hepErrorUnsupported,
                 "the memory is neither of cudaMalloc nor of cuMemCreate, so peers cannot map it");
  if (several_hosts)
    return error(hepErrorUnsupported,
                 "the memory is of cudaMalloc, which ranks on other hosts cannot map");
  return Status();
}

}  // namespace

Status find_device_range(int device, const void* pointer, size_t bytes, bool several_hosts,
                         DeviceRange* out) {
  std::shared_ptr<DeviceContext> context;
  HEP_TRY(DeviceContext::open(device, &context));
  const CurrentContext current(*context);
  HEP_TRY(current.status());
  const DriverTable& driver = context->driver();
  const auto address = reinterpret_cast<CUdeviceptr>(pointer);
  HEP_TRY(check_belongs(driver, device, address));
  HEP_TRY(kind_of(driver, address, several_hosts, &out->kind));

  CUdeviceptr begin = 0;
  HEP_DRIVER_TRY(driver, MemGetAddressRange, &begin, &out->bytes, address);
  out->begin = begin;
  const uint64_t available = out->bytes - (address - begin);
  if (bytes <= available) return Status();
  // Mappings of cuMemMap may adjoin; each is an allocation by itself.
  return error(out->kind == MemoryKind::cuda_ipc ? hepErrorInvalidArgument : hepErrorUnsupported,
               "bytes is %zu, but only %" PRIu64
               " bytes of one allocation follow the pointer; ranges of several are not served",
               bytes, available);
}

}  // namespace hep
