// SPDX-License-Identifier: Apache-2.0
#include "latency.h"

#include <algorithm>
#include <memory>

#include "bench/gpu.h"
#include "bench/run.h"

namespace bench {
namespace {

constexpr double kPauseUs = 20.0;  // longer than a rank lags behind another
constexpr int kRunsAhead = 40;     // enqueued at once: a stream takes about 1000 pieces of work

Latency summarize(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  const size_t last = times.size() - 1;
  return {times[last / 2], times[last * 99 / 100], times[last]};
}

// The runs of one rank. Each part stands between two timers, which are used again and again.
class Runs {
 public:
  Runs(harness::World& world, int rank, const Passes& passes, harness::Stream& stream,
       const std::vector<Call>& parts)
      : world_(world), rank_(rank), passes_(passes), stream_(stream), parts_(parts) {
    const size_t ahead = std::min(kRunsAhead, passes.iterations) * parts.size();
    while (timers_.size() < ahead) {
      timers_.push_back(std::make_unique<harness::Timer>(stream.backend()));
    }
    times_.resize(parts.size());
  }

  void warm_up() {
    if (stream_.backend() == hepBackendCuda) {  // the first launch loads the kernel and may wait
      pause(stream_.get(), 0);
      stream_.synchronize();
    }
    meet(world_, rank_);  // every rank has prepared
    for (; index_ < passes_.warmup; ++index_) call_parts();
    stream_.synchronize();
  }

  // Returns the times of each part, in microseconds.
  std::vector<std::vector<double>> time() {
    for (int done = 0; done < passes_.iterations;) {
      const int runs = std::min(kRunsAhead, passes_.iterations - done);
      run(runs);
      read_timers(runs);
      done += runs;
    }
    return times_;
  }

 private:
  void call_parts() {
    for (const Call& part : parts_) {
      if (!enqueues_ahead(world_)) meet(world_, rank_);
      part(index_);
    }
  }

  void run(int runs) {
    if (!enqueues_ahead(world_)) {
      for (int i = 0; i < runs; ++i) run_once(i * parts_.size());
      return;
    }
    run_gated(world_, rank_, stream_, [&] {
      // A gate does not open for all ranks at the same moment. The first run after it would include
      // the difference, which is hundreds of microseconds at times.
      call_parts();
      for (int i = 0; i < runs; ++i) run_once(i * parts_.size());
    });
  }

  void run_once(size_t first_timer) {
    for (size_t part = 0; part < parts_.size(); ++part) {
      harness::Timer& timer = *timers_[first_timer + part];
      if (!enqueues_ahead(world_)) meet(world_, rank_);
      if (stream_.backend() == hepBackendCuda) pause(stream_.get(), kPauseUs);
      timer.start(stream_);
      parts_[part](index_);
      timer.stop(stream_);
    }
    ++index_;
  }

  void read_timers(int runs) {
    for (size_t i = 0; i < runs * parts_.size(); ++i) {
      times_[i % parts_.size()].push_back(timers_[i]->milliseconds() * 1e3);
    }
  }

  harness::World& world_;
  const int rank_;
  const Passes passes_;
  harness::Stream& stream_;
  const std::vector<Call>& parts_;
  std::vector<std::unique_ptr<harness::Timer>> timers_;
  std::vector<std::vector<double>> times_;
  int index_ = 0;
};

}  // namespace

int num_runs(const Passes& passes) { return passes.warmup + passes.iterations; }

std::vector<Latency> measure_latency(harness::World& world, int rank, const Passes& passes,
                                     harness::Stream& stream, const std::vector<Call>& parts) {
  Runs runs(world, rank, passes, stream, parts);
  runs.warm_up();
  std::vector<Latency> latencies;
  for (const std::vector<double>& mine : runs.time()) {
    latencies.push_back(summarize(slowest(world, rank, mine)));
  }
  return latencies;
}

}  // namespace bench
