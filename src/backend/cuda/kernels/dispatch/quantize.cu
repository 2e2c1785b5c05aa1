// SPDX-License-Identifier: Apache-2.0
// Quantisation of this rank's tokens into its window, in a kernel of its own before that of dispatch.
#include "backend/cuda/kernels/dispatch/quantize.cuh"

#include "backend/cuda/launch.h"
#include "protocol/shape.h"

namespace hep::dispatch {
namespace {

constexpr int kThreads = 1024;

__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const __grid_constant__ QuantizeArgs args) {
  quantize_rows(args,
                part_of_tokens(args.num_tokens, blockIdx.x, ceil_div(args.num_tokens, gridDim.x)),
                all_threads());
}

}  // namespace

cudaError_t prepare_quantize_kernels() { return prepare(quantize_kernel); }

cudaError_t launch_quantize(const QuantizeArgs& args, const Plan& plan, cudaStream_t stream) {
  return launch(quantize_kernel, plan.dispatch_blocks, kThreads, 0, stream, args);
}

}  // namespace hep::dispatch
