// SPDX-License-Identifier: Apache-2.0
// The kernels, as the host sees them.
#pragma once

#include <cuda_runtime_api.h>

#include "backend/cuda/kernel_args.h"
#include "config/config.h"

namespace hep {

// prepare_*() loads kernels on the current device and grants their shared memory: a kernel that was loaded
// only when first launched could wait for one that waits for a peer.
namespace route {
cudaError_t prepare_map_kernels();
cudaError_t prepare_route_kernels();
// Before the routing update that takes the indices.
cudaError_t launch_map(const MapArgs& args, const Plan& plan, cudaStream_t stream);
cudaError_t launch_route(const RouteArgs& args, bool index64, const Plan& plan,
                         cudaStream_t stream);
}  // namespace route

namespace dispatch {
cudaError_t prepare_quantize_kernels();
cudaError_t prepare_dispatch_kernels();
// Before the dispatch of what it leaves in the window.
cudaError_t launch_quantize(const QuantizeArgs& args, const Plan& plan, cudaStream_t stream);
cudaError_t launch_dispatch(const DispatchArgs& args, const Plan& plan, cudaStream_t stream);
}  // namespace dispatch

namespace fused {
cudaError_t prepare_update_and_dispatch_kernels();
// The update of the routing and its dispatch at once, where can_place() says that there is room for it.
cudaError_t launch_update_and_dispatch(UpdateArgs args, bool index64, const Plan& plan,
                                       cudaStream_t stream);
}  // namespace fused

namespace combine {
cudaError_t prepare_gradient_kernels();
cudaError_t prepare_combine_kernels();
// Before the combine of the same arguments.
cudaError_t launch_send_gradients(const CombineArgs& args, const Plan& plan, cudaStream_t stream);
cudaError_t launch_combine(CombineArgs args, const Plan& plan, cudaStream_t stream);
}  // namespace combine

// Shared memory that a block may use: all that compute capabilities 9.0 and 10.0 offer. A device that offers
// less is refused.
constexpr int kMaxSharedBytes = 227 * 1024;

// Shared memory that a kernel declares by itself takes at most so many bytes, or the kStaticBytes that its
// file states. tests/unit/machine_code.py reads both, and compares them with what ptxas reports.
constexpr int kDefaultStaticBytes = 3072;
constexpr int kMaxDynamicSharedBytes = kMaxSharedBytes - kDefaultStaticBytes;

template <typename Args>
cudaError_t prepare(void (*kernel)(Args), int most_dynamic_bytes = kMaxDynamicSharedBytes) {
  cudaFuncAttributes attributes;
  const cudaError_t result =
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
  if (result != cudaSuccess) return result;
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                              cudaFuncAttributeMaxDynamicSharedMemorySize, most_dynamic_bytes);
}

// Returns the launch's own result, not the last error of the thread, which may be older.
template <typename Args>
cudaError_t launch(void (*kernel)(Args), int blocks, int threads, int shared_bytes,
                   cudaStream_t stream, const Args& args) {
  void* arguments[] = {const_cast<Args*>(&args)};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(threads),
                          arguments, shared_bytes, stream);
}

}  // namespace hep
