// SPDX-License-Identifier: Apache-2.0
// Times single operations rather than many in a row: each of thousands of runs by itself.
//
// On a GPU all ranks enqueue a run in full before it starts, and a pause comes before each of its
// parts. So neither the host nor the end of the run before delays it. Each part waits for its peers
// and so keeps the ranks in step. On the host, and if ranks share a GPU, the ranks meet before each
// part.
#pragma once

#include <functional>
#include <vector>

#include "harness/memory.h"
#include "harness/world.h"

namespace bench {

struct Latency {
  double p50_us = 0, p99_us = 0, max_us = 0;  // of all runs, each as long as on its slowest rank

  // Returns the times of one of the equal operations in a run.
  Latency operator/(double operations) const {
    return {p50_us / operations, p99_us / operations, max_us / operations};
  }
};

struct Passes {
  int warmup, iterations;
};

using Call = std::function<void(int index)>;

// Runs that measure_latency() makes, untimed ones included: index 0 ... num_runs() - 1.
int num_runs(const Passes& passes);

// Collective. A run is a call of each part in turn; each is timed apart.
std::vector<Latency> measure_latency(harness::World& world, int rank, const Passes& passes,
                                     harness::Stream& stream, const std::vector<Call>& parts);

}  // namespace bench
