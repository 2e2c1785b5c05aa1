// SPDX-License-Identifier: Apache-2.0
// One file may use the headers of all operations: a kernel can dispatch and combine. Compiling this
// is the test.
#include "backend/cuda/kernels/combine/forward.cuh"
#include "backend/cuda/kernels/combine/receive.cuh"
#include "backend/cuda/kernels/combine/reduce.cuh"
#include "backend/cuda/kernels/combine/send.cuh"
#include "backend/cuda/kernels/dispatch/counts.cuh"
#include "backend/cuda/kernels/dispatch/gate.cuh"
#include "backend/cuda/kernels/dispatch/rows.cuh"
#include "backend/cuda/kernels/fused/assign.cuh"
#include "backend/cuda/kernels/fused/own_tokens.cuh"
#include "backend/cuda/kernels/route/receive.cuh"
#include "backend/cuda/kernels/route/send.cuh"

namespace {

using Variant = hep::combine::Variant<__nv_bfloat16, __nv_bfloat16, hepLayoutFlat>;

// Both operations load rows; each has its own end of a ring.
__global__ void together_kernel(const __grid_constant__ hep::DispatchArgs dispatch,
                                const __grid_constant__ hep::CombineArgs combine,
                                hep::combine::ContributionLoader loader,
                                hep::Ring<hep::dispatch::RowItem> ring) {
  if (threadIdx.x < hep::kWarpSize)
    hep::dispatch::store_rows<hepLayoutFlat, 1>(dispatch, {}, ring);
  else
    hep::combine::load_contributions<Variant>(combine, 1, 0, loader);
}

static_assert(hep::dispatch::kThreads > 0 && hep::combine::kThreads > 0);
static_assert(sizeof(hep::dispatch::kEnd) != sizeof(hep::combine::kEnd));
static_assert(hep::fused::kAssigningThreads % hep::kWarpSize == 0);
static_assert(sizeof(hep::route::Counters) == 3 * sizeof(void*));

// Instantiates the kernel, though nothing launches it.
[[maybe_unused]] const auto kTogether = &together_kernel;

}  // namespace
