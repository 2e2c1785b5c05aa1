// SPDX-License-Identifier: Apache-2.0
// hep_perf: times the operations on every rank at once and compares what they gave with the
// reference. See --help.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>

#include "bench.h"
#include "ceilings.h"
#include "gpu.h"
#include "harness/world.h"
#include "job.h"
#include "options.h"
#include "report.h"
#include "require.h"

namespace perf {
namespace {

// In the root process, for all GPUs; only a process that sees them all can.
Ceilings find_ceilings(const harness::World& world, const Options& options, const GpuInfo& gpus) {
  Ceilings ceilings;
  if (!options.ceilings) {
    ceilings.skipped = "--no-ceilings";
  } else if (world.backend() != hepBackendCuda) {
    ceilings.skipped = "the host backend has no links";
  } else if (world.num_processes() > 1 && gpus.count < world.num_ranks()) {
    ceilings.skipped = "this process sees " + std::to_string(gpus.count) + " GPUs, for " +
                       std::to_string(world.num_ranks()) + " ranks";
  } else {
    try {
      ceilings = measure_ceilings(std::min(gpus.count, world.num_ranks()), options.sms);
    } catch (const std::exception& exception) {  // the other processes wait for this one
      ceilings.skipped = exception.what();
      ceilings.failed = true;
    }
  }
  return ceilings;
}

bool write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  file.close();
  if (!file.good()) std::fprintf(stderr, "hep_perf: cannot write %s\n", path.c_str());
  return file.good();
}

// True if everything ran and was right.
bool run(harness::World& world, Options options) {
  std::string error;
  if (!resolve_defaults(world.backend(), world.num_ranks(), &options, &error)) {
    throw std::runtime_error(error);
  }
  // Calls are enqueued back to back, which ranks on one device may not do; nor would it mean much.
  if (world.shares_devices())
    throw std::runtime_error(std::to_string(world.num_ranks()) + " ranks would share " +
                             std::to_string(world.num_devices()) +
                             " GPUs: use at most one rank a GPU");
  const bool cuda = world.backend() == hepBackendCuda;
  // Before the inputs are made for it.
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.max_tokens = options.tokens;
  config.hidden = options.hidden;
  config.num_experts = options.experts;
  config.max_top_k = options.top_k;
  require(hepConfigCheck(&config, world.num_ranks()), "config");

  const Job job(options, world.backend(), world.num_ranks());
  std::unique_ptr<Report> report;
  if (world.is_root()) {
    const GpuInfo gpus = cuda ? gpu_info() : GpuInfo();
    report = std::make_unique<Report>(job, world.num_processes(), gpus,
                                      find_ceilings(world, options, gpus));
    report->print_header();
  }
  world.run([&](int rank) { Bench(world, job, rank, rank == 0 ? report.get() : nullptr).run(); });

  bool succeeded = report == nullptr || report->clean();
  if (report != nullptr && !options.json.empty()) {
    succeeded = write_file(options.json, report->json()) && succeeded;
  }
  return succeeded;
}

}  // namespace
}  // namespace perf

int main(int argc, char** argv) {
  perf::Options options;
  std::string error;
  if (!perf::parse_options(argc, argv, &options, &error)) {
    std::fprintf(stderr, "hep_perf: %s\n", error.c_str());
    return 2;
  }
  if (options.help) {
    std::fputs(perf::help_text().c_str(), stdout);
    return 0;
  }
  if (!harness::World::init(&argc, &argv, {options.ranks, options.backend})) return 1;
  bool succeeded = false;
  try {
    succeeded = perf::run(harness::world(), options);
  } catch (const std::exception& exception) {
    std::fprintf(stderr, "hep_perf: %s\n", exception.what());
  }
  harness::World::finalize();
  return succeeded ? 0 : 1;
}
