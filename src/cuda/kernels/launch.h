// SPDX-License-Identifier: Apache-2.0
// The kernels, as the host sees them.
#pragma once

#include <cuda_runtime_api.h>

#include "config.h"
#include "cuda/kernel_args.h"

namespace hep {

// Loads every kernel on the current device and grants its shared memory: a kernel that was loaded
// only when first launched could wait for one that waits for a peer.
cudaError_t prepare_route_kernels();
cudaError_t prepare_dispatch_kernels();
cudaError_t prepare_combine_kernels();

cudaError_t launch_route(const RouteArgs& args, bool index64, const Plan& plan,
                         cudaStream_t stream);
cudaError_t launch_dispatch(DispatchArgs args, const Plan& plan, cudaStream_t stream);
cudaError_t launch_combine(CombineArgs args, const Plan& plan, cudaStream_t stream);

// What a block of a kernel may use, of the 227 KiB that compute capability 9.0 and newer have.
constexpr int kMaxSharedBytes = 227 * 1024;

}  // namespace hep
