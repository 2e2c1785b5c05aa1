// SPDX-License-Identifier: Apache-2.0
#include "gpu/device.h"

#include <cstring>

#include "gpu/device_memory.h"
#include "gpu/driver.h"

namespace hep {

Status keep_current_device(const std::function<Status()>& body) {
  const DeviceGuard guard;
  return body();
}

Status check_not_capturing(int device) {
  const DeviceGuard guard(device);
  HEP_TRY(guard.status());
  // The first query sees streams that wait for the legacy stream, and does not end their capture.
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  cudaError_t result = cudaStreamIsCapturing(cudaStreamLegacy, &capture);
  cudaEvent_t event = nullptr;
  if (result == cudaSuccess) result = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  if (result == cudaSuccess) result = cudaEventQuery(event);
  if (event != nullptr) cudaEventDestroy(event);
  const Status status = cuda_status(result, "looking for a capture");
  if (result == cudaErrorStreamCaptureUnsupported || result == cudaErrorStreamCaptureImplicit)
    return error(hepErrorInvalidUsage,
                 "memory cannot be registered or deregistered while a stream is being captured");
  return status;
}

Status count_sms(int device, int* num_sms) {
  HEP_CUDA_TRY(cudaDeviceGetAttribute(num_sms, cudaDevAttrMultiProcessorCount, device));
  return Status();
}

int capability_major(int device) {
  int major = 0;
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess
             ? major
             : 0;
}

Status device_uuid(int device, DeviceUuid* out) {
  const DriverTable* table = nullptr;
  HEP_TRY(driver(&table));
  CUdevice handle;
  HEP_DRIVER_TRY(*table, DeviceGet, &handle, device);
  CUuuid uuid;
  HEP_DRIVER_TRY(*table, DeviceGetUuid, &uuid, handle);
  static_assert(sizeof uuid.bytes == sizeof *out);
  std::memcpy(out->data(), uuid.bytes, out->size());
  return Status();
}

}  // namespace hep
