// SPDX-License-Identifier: Apache-2.0
#include "job.h"

#include <algorithm>

namespace perf {
namespace {

constexpr int64_t kCacheBytes = int64_t{128} << 20;  // more than twice the L2 cache of an H200
constexpr int kMaxSlots = 256;
constexpr int64_t kOverlapStride = 16;

reference::Routing make_routing(const Options& options, const Shape& shape,
                                const Workload& workload, int set, int num_ranks) {
  std::vector<reference::Batch> batches;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const std::vector<int32_t>& indices = workload.indices(set, rank);
    batches.push_back({shape.tokens_of(rank, num_ranks), {indices.begin(), indices.end()}});
  }
  return reference::Routing(options.experts, shape.top_k, options.alignment, batches);
}

// How many slots of so many bytes exceed the cache.
int slots_beyond_cache(const Job& job, int64_t bytes) {
  if (job.backend != hepBackendCuda || bytes == 0) return 1;
  return static_cast<int>(std::min<int64_t>(kMaxSlots, (kCacheBytes + bytes - 1) / bytes));
}

Slots input_slots(const Job& job, int64_t rows, int64_t row_bytes) {
  const int count = slots_beyond_cache(job, rows * row_bytes);
  return {rows, count == 1 ? kOverlapStride : rows, std::max(2, count)};
}

// What the largest case takes.
int64_t heap_bytes(const Job& job) {
  const Options& options = job.options;
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

// Inputs of two batches on two lanes.
int64_t low_latency_heap_bytes(const Job& job) {
  int64_t rows = 0;
  for (const hepLayout_t layout : job.options.layouts) {
    const std::vector<int64_t> capacities = batch_capacities(job, layout);
    for (int rank = 0; rank < job.num_ranks; ++rank) {
      rows = std::max(rows, job.routing().at(rank).output_rows(layout, capacities[rank]));
    }
  }
  constexpr int64_t kSlack = int64_t{1} << 20;
  return 2 * 2 * (job.shape.tokens * job.x_bytes() + rows * job.row_bytes()) + kSlack;
}

}  // namespace

hepConfig_t work_config(const Options& options, const Shape& shape) {
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.type = shape.format.type;
  config.scale_bytes = static_cast<int32_t>(shape.format.scale_bytes(shape.hidden));
  config.max_tokens = shape.tokens;
  config.hidden = shape.hidden;
  config.num_experts = options.experts;
  config.max_top_k = shape.top_k;
  return config;
}

Job::Job(const Options& given, const Shape& shape, const Values& values, hepBackend_t backend,
         int num_ranks)
    : options(given),
      shape(shape),
      values(values),
      backend(backend),
      num_ranks(num_ranks),
      workload(shape, given.experts, given.seed, num_ranks) {
  for (int set = 0; set < 2; ++set) {
    routings.push_back(make_routing(options, shape, workload, set, num_ranks));
  }
  for (int rank = 0; rank < num_ranks; ++rank) weights.push_back(workload.weights(rank));
  for (const auto& mine : weights) {
    weight_pointers.push_back(options.weights ? mine.data() : nullptr);
  }
}

hepConfig_t Job::config(int sms, const Tuning& tuning) const {
  hepConfig_t config = work_config(options, shape);
  config.backend = backend;
  config.timeout_ms = options.timeout_ms;
  config.sm_budget = sms;
  config.heap_bytes = heap_bytes(*this);
  tuning.apply(&config);
  return config;
}

hepConfig_t Job::low_latency_config(int sms) const {
  hepConfig_t config = work_config(options, shape);
  config.backend = backend;
  config.timeout_ms = options.timeout_ms;
  config.low_latency_tokens = shape.tokens;
  config.low_latency_blocks = sms;
  config.heap_bytes = low_latency_heap_bytes(*this);
  return config;
}

double Job::mean_rows() const {
  size_t rows = 0;
  for (int rank = 0; rank < num_ranks; ++rank) rows += routing().at(rank).rows.size();
  return static_cast<double>(rows) / num_ranks;
}

double Job::mean_remote_rows() const {
  int64_t rows = 0;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const auto& all = routing().at(rank).rows;
    rows += std::count_if(all.begin(), all.end(),
                          [=](const reference::FlatRow& row) { return row.source != rank; });
  }
  return static_cast<double>(rows) / num_ranks;
}

hepWeightMode_t Job::weight_mode(hepLayout_t layout) const {
  return options.weights && layout != hepLayoutFlat ? hepWeightsDispatched : hepWeightsNone;
}

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

std::vector<int64_t> exact_capacities(const Job& job, hepLayout_t layout) {
  std::vector<int64_t> capacities;
  for (int rank = 0; rank < job.num_ranks; ++rank) {
    capacities.push_back(job.routing().at(rank).num_rows(layout));
  }
  return capacities;
}

std::vector<int64_t> batch_capacities(const Job& job, hepLayout_t layout) {
  std::vector<int64_t> capacities = exact_capacities(job, layout);
  for (int rank = 0; rank < job.num_ranks; ++rank) {
    capacities[rank] = std::max(capacities[rank], job.routings[1].at(rank).num_rows(layout));
  }
  return capacities;
}

}  // namespace perf
