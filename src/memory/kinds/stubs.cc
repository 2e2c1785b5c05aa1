// SPDX-License-Identifier: Apache-2.0
// Stands in for find_range.cc where the library is built without CUDA.
#include "memory/kind.h"

namespace hep {

Status find_device_range(int, const void*, size_t, bool, DeviceRange*) {
  return error(hepErrorUnsupported, "this library was built without CUDA");
}

}  // namespace hep
