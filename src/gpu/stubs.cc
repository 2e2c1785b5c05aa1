// SPDX-License-Identifier: Apache-2.0
// Stands in for the cuda backend where the library is built without CUDA.
#include "backend/backend.h"
#include "gpu/device.h"
#include "memory/memory_kind.h"

namespace hep {

Status create_cuda_backend(const BackendContext&, std::unique_ptr<Backend>*) {
  return error(hepErrorUnsupported, "this library was built without CUDA");
}

Status keep_current_device(const std::function<Status()>& body) { return body(); }

Status count_sms(int, int*) {
  return error(hepErrorUnsupported, "this library was built without CUDA");
}

Status device_uuid(int, DeviceUuid*) {
  return error(hepErrorUnsupported, "this library was built without CUDA");
}

Status check_not_capturing(int) { return Status(); }

Status find_device_range(int, const void*, size_t, bool, DeviceRange*) {
  return error(hepErrorUnsupported, "this library was built without CUDA");
}

Status find_cuda_device(int*) {
  return error(hepErrorUnsupported, "this library was built without CUDA");
}

Status bind_cuda_device(int) {
  return error(hepErrorUnsupported, "this library was built without CUDA");
}

}  // namespace hep
