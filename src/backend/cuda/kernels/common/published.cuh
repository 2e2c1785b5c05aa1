// SPDX-License-Identifier: Apache-2.0
// Memory that ranks publish for their peers to read.
#pragma once

#include "backend/cuda/kernel_args.h"
#include "backend/cuda/kernels/common/ptx.cuh"
#include "protocol/at.h"
#include "protocol/location.h"

namespace hep {

// Where this rank sees a location that `peer` has published. The host may have entered registered
// memory while the kernel runs, so the entry is not read through a cache.
__device__ inline char* published_at(const KernelContext& context, int peer, uint64_t location) {
  const int slot = registration_of(location);
  if (slot < 0) return at<char>(context.windows[peer], offset_of(location));
  void** const entry = context.registered + slot * context.num_ranks() + peer;
  const uint64_t address = ptx::ld_relaxed_sys(reinterpret_cast<const uint64_t*>(entry));
  return at<char>(reinterpret_cast<void*>(address), offset_of(location));
}

}  // namespace hep
