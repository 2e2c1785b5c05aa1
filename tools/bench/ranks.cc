// SPDX-License-Identifier: Apache-2.0
#include "ranks.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "gpu.h"

namespace bench {

void meet(harness::World& world, int rank) {
  if (!world.barrier(rank)) throw std::runtime_error("another rank failed");
}

bool enqueues_ahead(const harness::World& world) {
  return world.backend() == hepBackendCuda && !world.shares_devices();
}

void run_gated(harness::World& world, int rank, harness::Stream& stream,
               const std::function<void()>& enqueue) {
  Gate gate(stream.get());
  enqueue();
  meet(world, rank);
  gate.open();
  stream.synchronize();
}

std::vector<double> gather(harness::World& world, int rank, const std::vector<double>& mine) {
  std::vector<double> all(world.num_ranks() * mine.size());
  if (!world.all_gather(rank, mine.data(), all.data(), mine.size() * sizeof(double))) {
    throw std::runtime_error("another rank failed");
  }
  return all;
}

std::vector<double> slowest(harness::World& world, int rank, const std::vector<double>& mine) {
  const std::vector<double> all = gather(world, rank, mine);
  std::vector<double> slowest(mine.size(), 0);
  for (size_t i = 0; i < all.size(); ++i) {
    double& time = slowest[i % mine.size()];
    time = std::max(time, all[i]);
  }
  return slowest;
}

int64_t sum_over_ranks(harness::World& world, int rank, int64_t mine) {
  std::vector<int64_t> all(world.num_ranks());
  if (!world.all_gather(rank, &mine, all.data(), sizeof mine)) {
    throw std::runtime_error("another rank failed");
  }
  return std::accumulate(all.begin(), all.end(), int64_t{0});
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + values.size() / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace bench
