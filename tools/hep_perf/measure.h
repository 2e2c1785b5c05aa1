// SPDX-License-Identifier: Apache-2.0
// Times calls that all ranks make together.
//
// On a GPU the timed calls of all ranks are enqueued in full behind a gate, each between two events
// of its own, and then let go at once on all ranks. So the host never delays a call, and the calls
// themselves keep the ranks in step: each waits for its peers. A few untimed calls go first, to let
// the ranks fall into step. What a call waits for a slower peer belongs to its time, as it does in a
// model. On the host the ranks meet at a barrier before each call.
//
// Two more passes follow on a GPU. One traces kernels, which would slow down the first. The other
// takes the time on the host, a few calls at a time, so that no call waits for room in a queue.
#pragma once

#include <functional>

#include "harness/memory.h"
#include "harness/world.h"

namespace perf {

struct Timing {
  double median_us = 0;  // of the iterations, each as long as on its slowest rank
  double min_us = 0;
  double mean_rank_us = 0;  // median of the iterations, each as long as on the mean of the ranks
  double kernel_us = 0;     // of the kernels alone, likewise on the slowest rank; 0: not measured
  double host_us = 0;       // to enqueue a call, median of all calls of all ranks; 0: not measured
};

struct Passes {
  int warmup, iterations;
  bool kernel_time, host_time;
};

using Call = std::function<void(int index)>;

// Calls that measure() makes, untimed ones included: call(0) ... call(num_calls - 1).
int num_calls(const Passes& passes, hepBackend_t backend);

// Collective. `call(index)` makes one call on `stream`; it throws if that fails.
Timing measure(harness::World& world, int rank, const Passes& passes, harness::Stream& stream,
               const Call& call);

// Collective. The time that the host takes to enqueue a call.
double measure_host_us(harness::World& world, int rank, harness::Stream& stream, const Call& call,
                       int first_index);

}  // namespace perf
