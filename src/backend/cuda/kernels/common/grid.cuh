// SPDX-License-Identifier: Apache-2.0
// What the blocks of a grid do together.
#pragma once

#include "backend/cuda/kernels/common/ptx.cuh"
#include "backend/cuda/kernels/common/wait.cuh"

namespace hep {

// Waits until all blocks of the grid have come here; each then sees what all wrote before. By all
// threads; false as wait_until(). `arrivals` is only ever counted up, by grids of one size.
__device__ inline bool wait_for_grid(const KernelContext& context, const WaitPoint& point,
                                     uint64_t* arrivals) {
  bool all_here = true;
  __syncthreads();
  if (threadIdx.x == 0) {
    const uint64_t before = ptx::atomic_add_acq_rel_gpu(arrivals, 1);
    all_here = wait_for(context, point, arrivals, (before / gridDim.x + 1) * gridDim.x);
  }
  return __syncthreads_and(all_here);
}

// By one thread of each block of a kernel, when all of the block have read the epochs: whether it
// is the last to come, which may advance them. `begun` is 0 between kernels.
__device__ inline bool is_last_to_begin(uint64_t* begun) {
  if (ptx::atomic_add_acq_rel_gpu(begun, 1) + 1 != gridDim.x) return false;
  *begun = 0;
  return true;
}

// Called by the threads of a block that `sync` brings together, when what they have to make known
// is written. Returns to all of them whether this block is the last of the grid to arrive; the last
// sees what all blocks wrote. `arrivals` is 0 between kernels, whose grids differ.
template <typename Sync>
__device__ bool is_last_to_arrive(uint64_t* arrivals, bool leads, Sync sync) {
  __shared__ bool last;
  sync();
  if (leads) {
    last = ptx::atomic_add_acq_rel_gpu(arrivals, 1) + 1 == gridDim.x;
    if (last) *arrivals = 0;
  }
  sync();
  return last;
}

// By all threads.
__device__ inline bool is_last_to_arrive(uint64_t* arrivals) {
  return is_last_to_arrive(arrivals, threadIdx.x == 0, [] { __syncthreads(); });
}

}  // namespace hep
