// SPDX-License-Identifier: Apache-2.0
// Times single operations rather than many in a row: what each of thousands of runs took.
//
// On a GPU a run is enqueued in full before it starts, on all ranks, and a pause comes before each
// of its parts. So neither the host nor the end of what came before delays it. Each part waits for
// its peers and so keeps the ranks in step. On the host, and where ranks share a GPU, the
// ranks meet before each part.
#pragma once

#include <functional>
#include <vector>

#include "harness/memory.h"
#include "harness/world.h"

namespace bench {

struct Latency {
  double p50_us = 0, p99_us = 0, max_us = 0;  // of all runs, each as long as on its slowest rank

  // Of one of the equal operations that a run consists of.
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
