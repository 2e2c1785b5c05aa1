// SPDX-License-Identifier: Apache-2.0
// Quantisation of this rank's tokens into its window, in a kernel of its own before that of
// dispatch.
#include "backend/cuda/kernels/dispatch/quantize.cuh"

#include "backend/cuda/blocks/dispatch.h"
#include "backend/cuda/launch.h"
#include "protocol/shape.h"

namespace hep::dispatch {
namespace {

__global__ void __launch_bounds__(kQuantizeThreads)
    quantize_kernel(const __grid_constant__ QuantizeArgs args) {
  quantize_rows(args,
                part_of_tokens(args.num_tokens, blockIdx.x, ceil_div(args.num_tokens, gridDim.x)),
                all_threads());
}

constexpr KernelTable<QuantizeArgs, 1> kKernels{{{{}, quantize_kernel}}};

}  // namespace

cudaError_t prepare_quantize() { return kKernels.prepare(); }

cudaError_t launch_quantize(const QuantizeArgs& args, const Grid& grid, cudaStream_t stream) {
  return kKernels.launch({}, grid, stream, args);
}

}  // namespace hep::dispatch
