// SPDX-License-Identifier: Apache-2.0
#include "measure.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "gated.h"
#include "gpu.h"
#include "kernel_trace.h"

namespace perf {
namespace {

constexpr int kLeadIn = 3;       // untimed calls between a gate and the timed ones
constexpr int kBatchCalls = 16;  // behind one gate: a stream takes about 1000 pieces of work ahead
constexpr int kTracedCalls = 12;
constexpr int kHostGroups = 4;      // between which the queue runs empty
constexpr int kHostGroupCalls = 8;  // of which none waits for the queue

// Iteration by iteration.
Timing summarize(harness::World& world, int rank, const std::vector<double>& mine) {
  const size_t iterations = mine.size();
  const std::vector<double> all = gather(world, rank, mine);
  std::vector<double> mean(iterations, 0);
  for (size_t i = 0; i < all.size(); ++i) mean[i % iterations] += all[i] / world.num_ranks();
  const std::vector<double> of_slowest = slowest(world, rank, mine);
  Timing timing;
  timing.median_us = median(of_slowest);
  timing.min_us = *std::min_element(of_slowest.begin(), of_slowest.end());
  timing.mean_rank_us = median(mean);
  return timing;
}

// The kernels' time in each of the traced calls. NaN if the kernels that were recorded cannot be
// divided among the calls, as when records were lost.
std::vector<double> kernel_times(std::vector<KernelTrace::Kernel> kernels) {
  constexpr size_t kCalls = kLeadIn + kTracedCalls;
  std::vector<double> times(kTracedCalls, std::numeric_limits<double>::quiet_NaN());
  // The first is the empty one.
  if (kernels.size() <= 1 || (kernels.size() - 1) % kCalls != 0) return times;
  const size_t kernels_of_call = (kernels.size() - 1) / kCalls;
  for (int call = 0; call < kTracedCalls; ++call) {
    uint64_t nanoseconds = 0;
    for (size_t i = 0; i < kernels_of_call; ++i) {
      const auto& kernel = kernels[1 + (kLeadIn + call) * kernels_of_call + i];
      nanoseconds += kernel.end_ns - kernel.start_ns;
    }
    times[call] = static_cast<double>(nanoseconds) * 1e-3;
  }
  return times;
}

double measure_kernel_us(harness::World& world, int rank, harness::Stream& stream, const Call& call,
                         int first_index) {
  KernelTrace& trace = KernelTrace::instance();
  const bool leads_process = rank == world.first_rank();
  meet(world, rank);
  if (leads_process) trace.start();
  meet(world, rank);
  // What tracing allocates on this GPU comes before any kernel that waits for another GPU.
  launch_empty_kernel(stream.get());
  stream.synchronize();
  meet(world, rank);
  run_gated(world, rank, stream, [&] {
    for (int i = 0; i < kLeadIn + kTracedCalls; ++i) call(first_index + i);
  });
  meet(world, rank);
  if (leads_process) trace.stop();
  meet(world, rank);
  const Timing timing = summarize(world, rank, kernel_times(trace.kernels(world.device(rank))));
  return std::isnan(timing.mean_rank_us) ? 0 : timing.median_us;
}

}  // namespace

double measure_host_us(harness::World& world, int rank, harness::Stream& stream, const Call& call,
                       int first_index) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> times;
  for (int group = 0; group < kHostGroups; ++group) {
    meet(world, rank);
    for (int i = 0; i < kHostGroupCalls; ++i) {
      const Clock::time_point start = Clock::now();
      call(first_index++);
      times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
    }
    stream.synchronize();
  }
  return median(gather(world, rank, times));
}

int num_calls(const Passes& passes, hepBackend_t backend) {
  if (backend != hepBackendCuda) return passes.warmup + passes.iterations;
  const int batches = (passes.iterations + kBatchCalls - 1) / kBatchCalls;
  return passes.warmup + batches * kLeadIn + passes.iterations +
         (passes.kernel_time ? kLeadIn + kTracedCalls : 0) +
         (passes.host_time ? kHostGroups * kHostGroupCalls : 0);
}

Timing measure(harness::World& world, int rank, const Passes& passes, harness::Stream& stream,
               const Call& call) {
  const bool gated = stream.backend() == hepBackendCuda;
  int index = 0;
  meet(world,
       rank);  // every rank has prepared: nothing is allocated while a kernel waits for a peer
  for (int i = 0; i < passes.warmup; ++i) call(index++);
  stream.synchronize();

  std::vector<double> times;
  std::vector<std::unique_ptr<harness::Timer>> timers;
  for (int i = 0; i < std::min(kBatchCalls, passes.iterations); ++i) {
    timers.push_back(std::make_unique<harness::Timer>(stream.backend()));
  }
  while (static_cast<int>(times.size()) < passes.iterations) {
    const int batch =
        std::min<int>(kBatchCalls, passes.iterations - static_cast<int>(times.size()));
    const auto timed_call = [&](int i) {
      timers[i]->start(stream);
      call(index++);
      timers[i]->stop(stream);
    };
    if (gated) {
      run_gated(world, rank, stream, [&] {
        for (int i = 0; i < kLeadIn; ++i) call(index++);
        for (int i = 0; i < batch; ++i) timed_call(i);
      });
    } else {
      for (int i = 0; i < batch; ++i) {
        meet(world, rank);
        timed_call(i);
      }
    }
    for (int i = 0; i < batch; ++i) times.push_back(timers[i]->milliseconds() * 1e3);
  }
  Timing timing = summarize(world, rank, times);
  if (!gated) return timing;
  if (passes.host_time) {
    timing.host_us = measure_host_us(world, rank, stream, call, index);
    index += kHostGroups * kHostGroupCalls;
  }
  if (passes.kernel_time) {
    timing.kernel_us = measure_kernel_us(world, rank, stream, call, index);
  }
  return timing;
}

}  // namespace perf
