// SPDX-License-Identifier: Apache-2.0
#include "run.h"

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench.h"
#include "bench_latency.h"
#include "json_file.h"
#include "kernel_trace.h"
#include "require.h"

namespace perf {
namespace {

using Sessions = std::vector<std::unique_ptr<Session>>;  // of this process's ranks

// In the root process, for all GPUs; only a process that sees them all can.
Ceilings find_ceilings(const harness::World& world, const Options& options, const GpuInfo& gpus) {
  Ceilings ceilings;
  if (!options.ceilings || options.low_latency) {
    ceilings.skipped = options.low_latency ? "--low-latency" : "--no-ceilings";
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

// Before the inputs are made for it.
void check_request(const harness::World& world, const Options& options) {
  // Calls are enqueued back to back, which ranks on one device may not do; nor would it mean much.
  if (world.shares_devices())
    throw std::runtime_error(std::to_string(world.num_ranks()) + " ranks would share " +
                             std::to_string(world.num_devices()) +
                             " GPUs: use at most one rank a GPU");
  for (const Shape& shape : shapes(options)) {
    const hepConfig_t config = work_config(options, shape);
    require(hepConfigCheck(&config, world.num_ranks()), "config");
  }
}

// All processes must do the same: what one of them lacks, none has.
std::string agree(const harness::World& world, const std::string& refusal) {
  const bool refused = world.max_over_processes(!refusal.empty()) != 0;
  return refused && refusal.empty() ? "another process cannot" : refusal;
}

std::string refuse_kernel_time(const harness::World& world, const Options& options) {
  if (world.backend() != hepBackendCuda) return "the host backend has no kernels";
  if (!options.kernel_time) return "--no-kernel-time";
  if (options.low_latency) return "--low-latency";
  return agree(world, KernelTrace::instance().probe());
}

std::string refuse_baselines(const harness::World& world) {
  if (world.backend() != hepBackendCuda) return "the host backend has no NCCL";
  return agree(world, Nccl::instance().refusal());
}

// What the host takes to enqueue an empty kernel on every rank; 0 on the host backend.
double measure_launch_us(harness::World& world, const Sessions& sessions) {
  if (world.backend() != hepBackendCuda) return 0;
  double launch_us = 0;
  world.run([&](int rank) {
    harness::Stream& stream = sessions[rank - world.first_rank()]->stream;
    const auto launch = [&](int) { launch_empty_kernel(stream.get()); };
    launch(0);  // the first in a thread takes longer
    stream.synchronize();
    const double time = measure_host_us(world, rank, stream, launch, 0);
    if (rank == world.first_rank()) launch_us = time;
  });
  return launch_us;
}

}  // namespace

bool run(harness::World& world, Options options) {
  std::string error;
  if (!resolve_defaults(world.backend(), world.num_ranks(), &options, &error)) {
    throw std::runtime_error(error);
  }
  check_request(world, options);
  const JsonFile file(options.json, options.append);  // so that it is known to be one
  Setting setting;
  setting.options = options;
  setting.backend = world.backend();
  setting.num_ranks = world.num_ranks();
  setting.num_processes = world.num_processes();
  if (world.is_root()) {
    if (world.backend() == hepBackendCuda) setting.gpus = gpu_info();
    // First, because it lets the GPUs access each other for a while, as NCCL may for good.
    setting.ceilings = find_ceilings(world, options, setting.gpus);
  }
  bool with_nccl = false;
  if (options.baselines) {
    const std::string refusal = refuse_baselines(world);
    with_nccl = refusal.empty();
    setting.nccl = with_nccl ? "NCCL " + Nccl::instance().version() : "not measured: " + refusal;
  }
  const Values values(options.seed, types_of(shapes(options)));
  Sessions sessions(world.num_local_ranks());
  world.run([&](int rank) {
    sessions[rank - world.first_rank()] = std::make_unique<Session>(world, rank, values, with_nccl);
  });
  setting.launch_us = measure_launch_us(world, sessions);
  // From here on kernels may be traced, which could leave something behind.
  setting.kernel_time = refuse_kernel_time(world, options);

  std::unique_ptr<Report> report;
  if (world.is_root()) {
    report = std::make_unique<Report>(setting);
    report->print_header();
  }
  for (const Shape& shape : shapes(options)) {
    const Job job(options, shape, values, world.backend(), world.num_ranks());
    if (report != nullptr) report->begin(job);
    world.run([&](int rank) {
      Session& session = *sessions[rank - world.first_rank()];
      Report* const reporting = rank == 0 ? report.get() : nullptr;
      if (options.low_latency) {
        LatencyBench(world, job, rank, session, reporting).run();
      } else {
        Bench(world, job, rank, session, setting.kernel_time.empty(), reporting).run();
      }
    });
  }
  const double launch_us_at_end = measure_launch_us(world, sessions);
  // On the ranks' threads, where their devices are current.
  world.run([&](int rank) { sessions[rank - world.first_rank()].reset(); });

  if (report == nullptr) return true;
  report->finish(launch_us_at_end);
  const bool written = options.json.empty() || file.write(report->json());
  return report->clean() && written;
}

}  // namespace perf
