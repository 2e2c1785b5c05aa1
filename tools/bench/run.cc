// SPDX-License-Identifier: Apache-2.0
#include "run.h"

#include <unistd.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <stdexcept>
#include <vector>

namespace bench {

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

}  // namespace bench
