// SPDX-License-Identifier: Apache-2.0
#include "run.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "gpu.h"

namespace bench {

int run_program(CLI::App& app, const char* name, const Options& options, int argc, char** argv,
                const std::function<bool(harness::World&)>& run) {
  CLI11_PARSE(app, argc, argv);
  if (!harness::World::init(&argc, &argv, {options.ranks, options.backend})) return 1;
  bool succeeded = false;
  try {
    succeeded = run(harness::world());
  } catch (const std::exception& exception) {
    std::fprintf(stderr, "%s: %s\n", name, exception.what());
  }
  harness::World::finalize();
  return succeeded ? 0 : 1;
}

void prepare_root(const harness::World& world, const std::function<void()>& prepare) {
  std::string failure;
  try {
    if (world.is_root()) prepare();
  } catch (const std::exception& exception) {
    failure = exception.what();
  }
  if (world.max_over_processes(!failure.empty()) == 0) return;
  throw std::runtime_error(failure.empty() ? "the process of rank 0 failed" : failure);
}

void run_shapes(harness::World& world, const Options& options, const Measure& measure) {
  const std::vector<Shape> all = shapes(options);
  for (const Shape& shape : all) {  // before the inputs are made
    const hepConfig_t config = work_config(options, shape);
    require(hepConfigCheck(&config, world.num_ranks()), "config");
  }
  const Values values(options.seed, types_of(all));
  std::vector<std::unique_ptr<Session>> sessions(world.num_local_ranks());
  const auto session = [&](int rank) -> std::unique_ptr<Session>& {
    return sessions[rank - world.first_rank()];
  };
  world.run([&](int rank) { session(rank) = std::make_unique<Session>(world.backend(), values); });
  for (const Shape& shape : all) {
    const Job job(options, shape, values, world.backend(), world.num_ranks());
    world.run([&](int rank) { measure(job, rank, *session(rank)); });
  }
  // On the ranks' threads, where their devices are current.
  world.run([&](int rank) { session(rank).reset(); });
}

void show_progress(const std::string& text) {
  if (!isatty(STDERR_FILENO)) return;
  std::fprintf(stderr, "\r\033[K%s", text.c_str());
  std::fflush(stderr);
}

// --------------------------------------------------------------- what the ranks do together

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
