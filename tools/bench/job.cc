// SPDX-License-Identifier: Apache-2.0
#include "job.h"

#include <algorithm>

namespace bench {
namespace {

reference::Routing make_routing(const Options& options, const Shape& shape,
                                const Workload& workload, int set, int num_ranks) {
  std::vector<reference::Batch> batches;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const std::vector<int32_t>& indices = workload.indices(set, rank);
    batches.push_back({shape.tokens_of(rank, num_ranks), {indices.begin(), indices.end()}});
  }
  return reference::Routing(options.experts, shape.top_k, options.alignment, batches);
}

}  // namespace

hepConfig_t work_config(const Options& options, const Shape& shape) {
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.type = shape.format.type;
  config.scale_bytes = static_cast<int32_t>(shape.format.scale_bytes(shape.hidden));
  config.max_tokens = shape.tokens;
  config.hidden = shape.hidden;
  config.num_experts = options.experts;
  config.domain_size = options.domain_size;
  config.max_top_k = shape.top_k;
  config.timeout_ms = options.timeout_ms;
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

}  // namespace bench
