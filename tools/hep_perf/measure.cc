// SPDX-License-Identifier: Apache-2.0
#include "measure.h"

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <vector>

#include "gpu.h"

namespace perf {
namespace {

constexpr int kLeadIn = 3;       // untimed calls between a gate and the timed ones
constexpr int kBatchCalls = 64;  // behind one gate: a stream takes about 1000 pieces of work ahead

void meet(harness::World& world, int rank) {
  if (!world.barrier(rank)) throw std::runtime_error("another rank failed");
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + values.size() / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// The times of all ranks, iteration by iteration.
Timing summarize(harness::World& world, int rank, const std::vector<double>& mine) {
  const int ranks = world.num_ranks();
  const size_t iterations = mine.size();
  std::vector<double> all(ranks * iterations);
  if (!world.all_gather(rank, mine.data(), all.data(), iterations * sizeof(double))) {
    throw std::runtime_error("another rank failed");
  }
  std::vector<double> slowest(iterations, 0), mean(iterations, 0);
  for (size_t i = 0; i < all.size(); ++i) {
    slowest[i % iterations] = std::max(slowest[i % iterations], all[i]);
    mean[i % iterations] += all[i] / ranks;
  }
  return {median(slowest), *std::min_element(slowest.begin(), slowest.end()), median(mean)};
}

}  // namespace

int num_calls(const Options& options, hepBackend_t backend) {
  const int batches = (options.iterations + kBatchCalls - 1) / kBatchCalls;
  const int lead_in = backend == hepBackendCuda ? batches * kLeadIn : 0;
  return options.warmup + lead_in + options.iterations;
}

Timing measure(harness::World& world, int rank, const Options& options, harness::Stream& stream,
               const std::function<void(int)>& call) {
  const bool gated = stream.backend() == hepBackendCuda;
  int index = 0;
  for (int i = 0; i < options.warmup; ++i) call(index++);
  stream.synchronize();

  std::vector<double> times;
  std::vector<std::unique_ptr<harness::Timer>> timers;
  while (static_cast<int>(times.size()) < options.iterations) {
    const int batch =
        std::min<int>(kBatchCalls, options.iterations - static_cast<int>(times.size()));
    while (static_cast<int>(timers.size()) < batch) {
      timers.push_back(std::make_unique<harness::Timer>(stream.backend()));
    }
    std::unique_ptr<Gate> gate;
    if (gated) {
      gate = std::make_unique<Gate>(stream.get());
      for (int i = 0; i < kLeadIn; ++i) call(index++);
    }
    for (int i = 0; i < batch; ++i) {
      if (!gated) meet(world, rank);
      timers[i]->start(stream);
      call(index++);
      timers[i]->stop(stream);
    }
    if (gated) {
      meet(world, rank);
      gate->open();
    }
    stream.synchronize();
    for (int i = 0; i < batch; ++i) times.push_back(timers[i]->milliseconds() * 1e3);
  }
  return summarize(world, rank, times);
}

}  // namespace perf
