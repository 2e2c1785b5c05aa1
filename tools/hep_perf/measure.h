// SPDX-License-Identifier: Apache-2.0
// Times calls that all ranks make together.
//
// On a GPU all ranks enqueue their timed calls in full behind a gate, each between two events. Then
// the gate opens on all ranks at once. So the host never delays a call, and the calls themselves
// keep the ranks in step, because each waits for its peers. A few untimed calls go first and bring
// the ranks into step. The wait for a slower peer belongs to a call's time, as it does in a model.
// A second pass measures the time on the host.
//
// On the host, and if ranks share a GPU, the ranks meet at a barrier before each call.
#pragma once

#include <functional>

#include "harness/memory.h"
#include "harness/world.h"

namespace bench {

struct Timing {
  double median_us = 0;  // of the iterations, each as long as on its slowest rank
  double min_us = 0;
  double host_us = 0;  // to enqueue a call, median of all calls of all ranks; 0: not measured
};

struct Passes {
  int warmup, iterations;
};

using Call = std::function<void(int index)>;

// Calls that measure() makes, untimed ones included: call(0) ... call(num_calls - 1).
int num_calls(const harness::World& world, const Passes& passes);

// Collective. `call(index)` makes one call on `stream`; it throws if that fails.
Timing measure(harness::World& world, int rank, const Passes& passes, harness::Stream& stream,
               const Call& call);

}  // namespace bench
