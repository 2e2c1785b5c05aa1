// SPDX-License-Identifier: Apache-2.0
// A build without CUDA: there is no GPU to ask anything of.
#include <stdexcept>

#include "ceilings.h"
#include "gpu.h"
#include "overlap.h"

namespace perf {
namespace {

[[noreturn]] void refuse() { throw std::runtime_error("built without CUDA"); }

}  // namespace

struct Gate::State {};

GpuInfo gpu_info() { return GpuInfo(); }

Gate::Gate(hepStream_t) { refuse(); }
void Gate::open() {}

void fill_rows(const GpuRows&, void*, hepStream_t) { refuse(); }
int64_t count_wrong_rows(const GpuRows&, const void*, unsigned long long*, hepStream_t) {
  refuse();
}
void launch_empty_kernel(hepStream_t) { refuse(); }
void pause(hepStream_t, double) { refuse(); }

Marker::Marker() { refuse(); }
Marker::~Marker() = default;
void Marker::record(hepStream_t) {}
void Marker::wait(hepStream_t) {}

Gemm::Gemm(int) { refuse(); }
void Gemm::launch(hepStream_t) const {}

PinnedMemory::PinnedMemory(size_t) { refuse(); }
PinnedMemory::~PinnedMemory() = default;

Ceilings measure_ceilings(int, const std::vector<int>&) {
  Ceilings ceilings;
  ceilings.skipped = "built without CUDA";
  return ceilings;
}

}  // namespace perf
