// SPDX-License-Identifier: Apache-2.0
#include "gpu/virtual_memory.h"

#include "protocol/shape.h"

namespace hep {

VirtualMemory::~VirtualMemory() {
  if (!context_ || !context_->check_not_reset().ok()) return;
  const CurrentContext current(*context_);
  const DriverTable& driver = context_->driver();
  if (mapped_) driver.MemUnmap(address_, bytes_);
  if (reserved_) driver.MemAddressFree(address_, bytes_);
  if (has_memory_) driver.MemRelease(memory_);
}

Status VirtualMemory::create(int device, size_t bytes, CUmemAllocationHandleType type) {
  HEP_TRY(DeviceContext::open(device, &context_));
  const CurrentContext current(*context_);
  HEP_TRY(current.status());
  const DriverTable& driver = context_->driver();

  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.requestedHandleTypes = type;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = context_->device();
  size_t granularity = 0;
  HEP_DRIVER_TRY(driver, MemGetAllocationGranularity, &granularity, &properties,
                 CU_MEM_ALLOC_GRANULARITY_MINIMUM);
  bytes_ = align_up(bytes, granularity);
  const CUresult created = driver.MemCreate(&memory_, bytes_, &properties, 0);
  HEP_TRY(allocation_status(driver_status(created, "cuMemCreate"), device, bytes_));
  has_memory_ = true;
  HEP_TRY(map());
  return context_->zero(address_, bytes_);
}

Status VirtualMemory::import(int device, void* exported, CUmemAllocationHandleType type,
                             size_t bytes) {
  HEP_TRY(DeviceContext::open(device, &context_));
  const CurrentContext current(*context_);
  HEP_TRY(current.status());
  bytes_ = bytes;
  HEP_DRIVER_TRY(context_->driver(), MemImportFromShareableHandle, &memory_, exported, type);
  has_memory_ = true;
  return map();
}

Status VirtualMemory::borrow(int device, uintptr_t address, size_t bytes) {
  HEP_TRY(DeviceContext::open(device, &context_));
  const CurrentContext current(*context_);
  HEP_TRY(current.status());
  HEP_DRIVER_TRY(context_->driver(), MemRetainAllocationHandle, &memory_,
                 reinterpret_cast<void*>(address));
  has_memory_ = true;
  address_ = address;
  bytes_ = bytes;
  return Status();
}

Status VirtualMemory::export_to(void* exported, CUmemAllocationHandleType type) const {
  const CurrentContext current(*context_);
  HEP_TRY(current.status());
  HEP_DRIVER_TRY(context_->driver(), MemExportToShareableHandle, exported, memory_, type, 0);
  return Status();
}

Status VirtualMemory::map() {
  const DriverTable& driver = context_->driver();
  HEP_DRIVER_TRY(driver, MemAddressReserve, &address_, bytes_, 0, 0, 0);
  reserved_ = true;
  HEP_DRIVER_TRY(driver, MemMap, address_, bytes_, 0, memory_, 0);
  mapped_ = true;
  CUmemAccessDesc access{};
  access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access.location.id = context_->device();
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  HEP_DRIVER_TRY(driver, MemSetAccess, address_, bytes_, &access, 1);
  return Status();
}

}  // namespace hep
