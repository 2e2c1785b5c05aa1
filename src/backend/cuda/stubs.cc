// SPDX-License-Identifier: Apache-2.0
// Stands in for the cuda backend if the library is built without CUDA.
#include "backend/backend.h"

namespace hep {

Status create_cuda_backend(BackendContext, std::unique_ptr<Backend>*) {
  return error(hepErrorUnsupported, "this library was built without CUDA");
}

Status find_cuda_device(int*) {
  return error(hepErrorUnsupported, "this library was built without CUDA");
}

Status bind_cuda_device(int) {
  return error(hepErrorUnsupported, "this library was built without CUDA");
}

}  // namespace hep
