// SPDX-License-Identifier: Apache-2.0
// Routing maps become indices, for the routing kernel that follows: a warp lists the experts of a
// token, ascending.
#include "backend/cuda/blocks/route.h"
#include "backend/cuda/kernels/common/report.cuh"
#include "backend/cuda/kernels/common/warp.cuh"
#include "backend/cuda/launch.h"

namespace hep::route {
namespace {

// Bytes of a map that a lane has on their way at once.
constexpr int kBytesAtOnce = 8;

// Returns how many experts the token selects; those past the first top_k are not listed.
__device__ int list_experts(const MapArgs& args, const uint8_t* selected, int32_t* indices) {
  int count = 0;
  for (int base = 0; base < args.num_experts; base += kBytesAtOnce * kWarpSize) {
    uint8_t bytes[kBytesAtOnce];
#pragma unroll
    for (int j = 0; j < kBytesAtOnce; ++j) {
      const int expert = base + j * kWarpSize + warp_lane();
      bytes[j] = expert < args.num_experts ? selected[expert] : 0;
    }
#pragma unroll
    for (int j = 0; j < kBytesAtOnce; ++j) {
      const uint32_t chosen = __ballot_sync(kFullWarp, bytes[j] != 0);
      const int k = count + __popc(chosen & warp_lanes_below());
      if (bytes[j] != 0 && k < args.top_k) indices[k] = base + j * kWarpSize + warp_lane();
      count += __popc(chosen);
    }
  }
  return count;
}

__global__ void __launch_bounds__(kMapThreads) map_kernel(const __grid_constant__ MapArgs args) {
  int most = 0;
  const int warps = gridDim.x * (kMapThreads / kWarpSize);
  for (int token = warp_index() * gridDim.x + blockIdx.x; token < args.num_tokens; token += warps) {
    int32_t* indices = args.indices + static_cast<int64_t>(token) * args.top_k;
    const int count =
        list_experts(args, args.map + static_cast<int64_t>(token) * args.num_experts, indices);
    if (warp_lane() >= count && warp_lane() < args.top_k) indices[warp_lane()] = -1;
    if (warp_lane() == 0 && count > args.top_k)
      record_bad_index(args.firsts, args.host, token, -1, count);
    most = max(most, count);
  }
  // Of the update that follows.
  if (warp_lane() == 0 && most > 0)
    ptx::atomic_max_relaxed_gpu(&args.state->most_selections[(args.state->routing_epoch + 1) & 1],
                                most);
}

constexpr KernelTable<MapArgs, 1> kKernels{{{{}, map_kernel}}};

}  // namespace

cudaError_t prepare_map() { return kKernels.prepare(); }

cudaError_t launch_map(const MapArgs& args, const Plan& plan, cudaStream_t stream) {
  return kKernels.launch({}, plan_map(plan), stream, args);
}

}  // namespace hep::route
