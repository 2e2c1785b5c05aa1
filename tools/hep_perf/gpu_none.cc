// SPDX-License-Identifier: Apache-2.0
// A build without CUDA: there is no GPU to ask anything of.
#include <stdexcept>

#include "ceilings.h"
#include "gpu.h"

namespace perf {

struct Gate::State {};

GpuInfo gpu_info() { return GpuInfo(); }

Gate::Gate(hepStream_t) { throw std::runtime_error("built without CUDA"); }
void Gate::open() {}

PinnedMemory::PinnedMemory(size_t) { throw std::runtime_error("built without CUDA"); }
PinnedMemory::~PinnedMemory() = default;

Ceilings measure_ceilings(int, const std::vector<int>&) {
  Ceilings ceilings;
  ceilings.skipped = "built without CUDA";
  return ceilings;
}

}  // namespace perf
