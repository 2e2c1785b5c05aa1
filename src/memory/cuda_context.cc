// SPDX-License-Identifier: Apache-2.0
#include "memory/cuda_context.h"

#include <cstring>

#include "memory/identity.h"

namespace hep {

Status DeviceContext::open(int device, std::shared_ptr<DeviceContext>* out) {
  const DriverTable* table = nullptr;
  HEP_TRY(hep::driver(&table));
  CUdevice handle;
  HEP_DRIVER_TRY(*table, DeviceGet, &handle, device);
  CUcontext context;
  HEP_DRIVER_TRY(*table, DevicePrimaryCtxRetain, &context, handle);
  out->reset(new DeviceContext(*table, handle, context));
  return Status();
}

DeviceContext::~DeviceContext() { driver_.DevicePrimaryCtxRelease(device_); }

Status DeviceContext::zero(CUdeviceptr address, size_t bytes) const {
  CUstream stream;
  HEP_DRIVER_TRY(driver_, StreamCreate, &stream, CU_STREAM_NON_BLOCKING);
  Status status =
      driver_status(driver_.MemsetD8Async(address, 0, bytes, stream), "cuMemsetD8Async");
  if (status.ok()) status = driver_status(driver_.StreamSynchronize(stream), "cuStreamSynchronize");
  driver_.StreamDestroy(stream);
  return status;
}

Status device_identity(int device, DeviceIdentity* out) {
  const DriverTable* table = nullptr;
  HEP_TRY(driver(&table));
  CUdevice handle;
  HEP_DRIVER_TRY(*table, DeviceGet, &handle, device);
  CUuuid uuid;
  HEP_DRIVER_TRY(*table, DeviceGetUuid, &uuid, handle);
  *out = {};
  static_assert(sizeof uuid.bytes == sizeof out->uuid);
  std::memcpy(out->uuid, uuid.bytes, sizeof out->uuid);
  HEP_DRIVER_TRY(*table, DeviceGetName, out->name, sizeof out->name - 1, handle);
  HEP_DRIVER_TRY(*table, DeviceGetAttribute, &out->capability_major,
                 CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, handle);
  HEP_DRIVER_TRY(*table, DeviceGetAttribute, &out->capability_minor,
                 CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, handle);
  return Status();
}

}  // namespace hep
