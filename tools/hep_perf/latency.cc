// SPDX-License-Identifier: Apache-2.0
#include "latency.h"

#include <algorithm>
#include <memory>

#include "gated.h"
#include "gpu.h"

namespace perf {
namespace {

constexpr double kPauseUs = 20.0;  // longer than a rank lags behind another

using Timers = std::vector<std::unique_ptr<harness::Timer>>;

Latency summarize(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  const size_t last = times.size() - 1;
  return {times[last / 2], times[last * 99 / 100], times[last]};
}

}  // namespace

int num_runs(const Passes& passes) { return passes.warmup + passes.iterations; }

std::vector<Latency> measure_latency(harness::World& world, int rank, const Passes& passes,
                                     harness::Stream& stream, const std::vector<Call>& parts,
                                     int runs_ahead) {
  const bool gated = stream.backend() == hepBackendCuda;
  const size_t ahead = std::min(runs_ahead, passes.iterations) * parts.size();
  Timers timers;
  while (timers.size() < ahead) {
    timers.push_back(std::make_unique<harness::Timer>(stream.backend()));
  }
  if (gated) {  // the first launch loads the kernel, which may wait for others
    pause(stream.get(), 0);
    stream.synchronize();
  }
  meet(world, rank);  // every rank has prepared
  int index = 0;
  for (; index < passes.warmup; ++index) {
    for (const Call& part : parts) part(index);
  }
  stream.synchronize();

  std::vector<std::vector<double>> times(parts.size());
  // A gate does not open for all ranks at once: the first run after it would time that, hundreds of
  // microseconds at times.
  const auto lead_in = [&] {
    for (const Call& part : parts) part(index);
  };
  const auto run = [&](size_t first_timer) {
    for (size_t part = 0; part < parts.size(); ++part) {
      harness::Timer& timer = *timers[first_timer + part];
      if (gated) pause(stream.get(), kPauseUs);
      timer.start(stream);
      parts[part](index);
      timer.stop(stream);
    }
    ++index;
  };
  for (int done = 0; done < passes.iterations;) {
    const int runs = std::min(runs_ahead, passes.iterations - done);
    if (gated) {
      run_gated(world, rank, stream, [&] {
        lead_in();
        for (int i = 0; i < runs; ++i) run(i * parts.size());
      });
    } else {
      for (int i = 0; i < runs; ++i) {
        meet(world, rank);
        run(i * parts.size());
      }
    }
    for (size_t i = 0; i < runs * parts.size(); ++i) {
      times[i % parts.size()].push_back(timers[i]->milliseconds() * 1e3);
    }
    done += runs;
  }
  std::vector<Latency> latencies;
  for (const std::vector<double>& mine : times) {
    latencies.push_back(summarize(slowest(world, rank, mine)));
  }
  return latencies;
}

}  // namespace perf
