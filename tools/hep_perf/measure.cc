// SPDX-License-Identifier: Apache-2.0
#include "measure.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

#include "bench/run.h"

namespace bench {
namespace {

constexpr int kLeadIn = 3;       // untimed calls between a gate and the timed ones
constexpr int kBatchCalls = 16;  // behind one gate: a stream takes about 1000 pieces of work ahead
constexpr int kHostGroups = 4;   // between which the queue runs empty
constexpr int kHostGroupCalls = 8;  // of which none waits for the queue

// Measures how long the host takes to enqueue a call. It makes only a few calls at a time, so that
// none waits for room in a queue.
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

using Timers = std::vector<std::unique_ptr<harness::Timer>>;

// Enqueues calls together; `timed_call(i)` makes the i-th.
void run_batch(harness::World& world, int rank, harness::Stream& stream, int batch, int* index,
               const Call& call, const std::function<void(int)>& timed_call) {
  if (enqueues_ahead(world)) {
    run_gated(world, rank, stream, [&] {
      for (int i = 0; i < kLeadIn; ++i) call((*index)++);
      for (int i = 0; i < batch; ++i) timed_call(i);
    });
    return;
  }
  for (int i = 0; i < batch; ++i) {
    meet(world, rank);
    timed_call(i);
  }
}

// Returns the times of this rank's iterations, in microseconds.
std::vector<double> time_calls(harness::World& world, int rank, int iterations,
                               harness::Stream& stream, int* index, const Call& call) {
  Timers timers;
  for (int i = 0; i < std::min(kBatchCalls, iterations); ++i) {
    timers.push_back(std::make_unique<harness::Timer>(stream.backend()));
  }
  const auto timed_call = [&](int i) {
    timers[i]->start(stream);
    call((*index)++);
    timers[i]->stop(stream);
  };
  std::vector<double> times;
  while (static_cast<int>(times.size()) < iterations) {
    const int batch = std::min<int>(kBatchCalls, iterations - static_cast<int>(times.size()));
    run_batch(world, rank, stream, batch, index, call, timed_call);
    for (int i = 0; i < batch; ++i) times.push_back(timers[i]->milliseconds() * 1e3);
  }
  return times;
}

}  // namespace

int num_calls(const harness::World& world, const Passes& passes) {
  if (!enqueues_ahead(world)) return passes.warmup + passes.iterations;
  const int batches = (passes.iterations + kBatchCalls - 1) / kBatchCalls;
  return passes.warmup + batches * kLeadIn + passes.iterations + kHostGroups * kHostGroupCalls;
}

Timing measure(harness::World& world, int rank, const Passes& passes, harness::Stream& stream,
               const Call& call) {
  int index = 0;
  // Every rank has prepared: nothing is allocated while a kernel waits for a peer.
  meet(world, rank);
  while (index < passes.warmup) {
    if (!enqueues_ahead(world)) meet(world, rank);
    call(index++);
  }
  stream.synchronize();
  const std::vector<double> times =
      slowest(world, rank, time_calls(world, rank, passes.iterations, stream, &index, call));
  Timing timing;
  timing.median_us = median(times);
  timing.min_us = *std::min_element(times.begin(), times.end());
  if (enqueues_ahead(world)) timing.host_us = measure_host_us(world, rank, stream, call, index);
  return timing;
}

}  // namespace bench
