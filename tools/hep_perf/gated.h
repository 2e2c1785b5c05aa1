// SPDX-License-Identifier: Apache-2.0
// Runs of calls that all ranks make together, and what all of them measured.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "harness/memory.h"
#include "harness/world.h"

namespace perf {

// Throws std::runtime_error if another rank failed.
void meet(harness::World& world, int rank);

// Enqueues calls behind a gate on all ranks, opens it, and waits until they are done. cuda only.
void run_gated(harness::World& world, int rank, harness::Stream& stream,
               const std::function<void()>& enqueue);

// What all ranks measured, rank by rank.
std::vector<double> gather(harness::World& world, int rank, const std::vector<double>& mine);

// Iteration by iteration that of the slowest rank.
std::vector<double> slowest(harness::World& world, int rank, const std::vector<double>& mine);

int64_t sum_over_ranks(harness::World& world, int rank, int64_t mine);

double median(std::vector<double> values);

}  // namespace perf
