// SPDX-License-Identifier: Apache-2.0
// Stands in for this folder's functions on devices if the library is built without CUDA.
#include "gpu/device.h"

namespace hep {

Status keep_current_device(const std::function<Status()>& body) { return body(); }

Status count_sms(int, int*) {
  return error(hepErrorUnsupported, "this library was built without CUDA");
}

int capability_major(int) { return 0; }

Status device_uuid(int, DeviceUuid*) {
  return error(hepErrorUnsupported, "this library was built without CUDA");
}

Status check_not_capturing(int) { return Status(); }

}  // namespace hep
