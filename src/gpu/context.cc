// SPDX-License-Identifier: Apache-2.0
#include "gpu/context.h"

namespace hep {

Status DeviceContext::open(int device, std::shared_ptr<DeviceContext>* out) {
  const DriverTable* table = nullptr;
  HEP_TRY(hep::driver(&table));
  CUdevice handle;
  HEP_DRIVER_TRY(*table, DeviceGet, &handle, device);
  CUcontext context;
  HEP_DRIVER_TRY(*table, DevicePrimaryCtxRetain, &context, handle);
  return take(*table, handle, context, out);
}

Status DeviceContext::take(const DriverTable& driver, CUdevice device, CUcontext context,
                           std::shared_ptr<DeviceContext>* out) {
  out->reset(new DeviceContext(driver, device, context));
  HEP_DRIVER_TRY(driver, CtxGetId, context, &(*out)->id_);
  return Status();
}

DeviceContext::~DeviceContext() { driver_.DevicePrimaryCtxRelease(device_); }

Status DeviceContext::check_not_reset() const {
  unsigned int flags = 0;
  int active = 0;
  unsigned long long id = 0;
  HEP_DRIVER_TRY(driver_, DevicePrimaryCtxGetState, device_, &flags, &active);
  if (active != 0) HEP_DRIVER_TRY(driver_, CtxGetId, context_, &id);
  if (id == id_) return Status();
  return error(hepErrorCuda, "the device was reset (CUDA_ERROR_CONTEXT_IS_DESTROYED)");
}

Status DeviceContext::zero(CUdeviceptr address, size_t bytes) const {
  CUstream stream;
  HEP_DRIVER_TRY(driver_, StreamCreate, &stream, CU_STREAM_NON_BLOCKING);
  Status status =
      driver_status(driver_.MemsetD8Async(address, 0, bytes, stream), "cuMemsetD8Async");
  if (status.ok()) status = driver_status(driver_.StreamSynchronize(stream), "cuStreamSynchronize");
  driver_.StreamDestroy(stream);
  return status;
}

}  // namespace hep
