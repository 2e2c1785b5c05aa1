// SPDX-License-Identifier: Apache-2.0
#include "slots.h"

#include <algorithm>
#include <vector>

namespace bench {
namespace {

constexpr int64_t kCacheBytes = int64_t{128} << 20;  // more than twice the L2 cache of an H200
constexpr int kMaxSlots = 256;
constexpr int64_t kOverlapStride = 16;

// Returns how many slots of this size exceed the cache.
int slots_beyond_cache(const Job& job, int64_t bytes) {
  if (job.backend != hepBackendCuda || bytes == 0) return 1;
  return static_cast<int>(std::min<int64_t>(kMaxSlots, (kCacheBytes + bytes - 1) / bytes));
}

Slots input_slots(const Job& job, int64_t rows, int64_t row_bytes) {
  const int count = slots_beyond_cache(job, rows * row_bytes);
  return {rows, count == 1 ? kOverlapStride : rows, std::max(2, count)};
}

}  // namespace

Slots token_slots(const Job& job) { return input_slots(job, job.shape.tokens, job.x_bytes()); }

Slots expert_slots(const Job& job, hepLayout_t layout, int rank) {
  const reference::Arrivals& arrivals = job.routing().at(rank);
  return input_slots(job, arrivals.output_rows(layout, arrivals.num_rows(layout)), job.row_bytes());
}

Slots output_slots(const Job& job, int64_t rows, const Slots& inputs) {
  int count = slots_beyond_cache(job, rows * job.row_bytes());
  // An output slot must meet another input slot each time it is used.
  if (count % inputs.count == 0) ++count;
  return {rows, rows, count};
}

Slots batch_slots(const Job& job) { return {job.shape.tokens, job.shape.tokens, 2}; }

int64_t heap_bytes(const Job& job, const PerfOptions& options) {
  const auto& memories = options.memories;
  if (std::find(memories.begin(), memories.end(), Memory::kHeap) == memories.end()) return 0;
  constexpr int64_t kSlack = int64_t{1} << 20;
  const bool combines = job.format().can_combine();
  const bool layers =
      combines && (options.measures(Operation::kLayer) || options.measures(Operation::kLayerGraph));
  int64_t bytes =
      options.measures(Operation::kDispatch) ? token_slots(job).total_rows() * job.x_bytes() : 0;
  const auto take = [&](int64_t rows) { bytes = std::max(bytes, rows * job.row_bytes()); };
  for (const hepLayout_t layout : options.layouts) {
    const std::vector<int64_t> capacities = batch_capacities(job, layout);
    for (int rank = 0; rank < job.num_ranks; ++rank) {
      if (combines && options.measures(Operation::kCombine)) {
        take(expert_slots(job, layout, rank).total_rows());
      }
      if (layers) {
        take(batch_slots(job).total_rows() +
             job.routing().at(rank).output_rows(layout, capacities[rank]));
      }
    }
  }
  return bytes + kSlack;
}

}  // namespace bench
