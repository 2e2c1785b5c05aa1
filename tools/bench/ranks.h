// SPDX-License-Identifier: Apache-2.0
// What the ranks do together: meet, start at once, and gather what each of them measured.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "harness/memory.h"
#include "harness/world.h"

namespace bench {

// Throws std::runtime_error if another rank failed.
void meet(harness::World& world, int rank);

// Whether a rank may enqueue operations before its peers have enqueued the ones before them. Ranks
// that share a GPU may not, because CUDA may keep a kernel waiting behind those of other ranks. The
// host backend has no queue.
bool enqueues_ahead(const harness::World& world);

// Enqueues calls behind a gate on all ranks, opens it, and waits until they are done. Only if
// enqueues_ahead().
void run_gated(harness::World& world, int rank, harness::Stream& stream,
               const std::function<void()>& enqueue);

// What all ranks measured, rank by rank.
std::vector<double> gather(harness::World& world, int rank, const std::vector<double>& mine);

// Iteration by iteration that of the slowest rank.
std::vector<double> slowest(harness::World& world, int rank, const std::vector<double>& mine);

int64_t sum_over_ranks(harness::World& world, int rank, int64_t mine);

double median(std::vector<double> values);

}  // namespace bench
