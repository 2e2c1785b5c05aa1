// SPDX-License-Identifier: Apache-2.0
#include "cuda/current_device.h"

#include <cstring>

#include "cuda/device_memory.h"
#include "cuda/driver.h"

namespace hep {

Status keep_current_device(const std::function<Status()>& body) {
  const DeviceGuard guard;
  return body();
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
