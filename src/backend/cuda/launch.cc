// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/launch.h"

namespace hep {

cudaError_t prepare_kernels() {
  for (const auto prepare : {route::prepare_map, route::prepare_route, dispatch::prepare_quantize,
                             dispatch::prepare_dispatch, fused::prepare_update_and_dispatch,
                             combine::prepare_gradients, combine::prepare_combine})
    if (const cudaError_t result = prepare(); result != cudaSuccess) return result;
  return cudaSuccess;
}

}  // namespace hep
