// SPDX-License-Identifier: Apache-2.0
// Stands in for gpu_cuda.cu in a build without CUDA.
#include <stdexcept>

#include "gpu.h"

namespace bench {
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
void pause(hepStream_t, double) { refuse(); }

PinnedMemory::PinnedMemory(size_t) { refuse(); }
PinnedMemory::~PinnedMemory() = default;

}  // namespace bench
