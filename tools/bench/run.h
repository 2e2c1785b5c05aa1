// SPDX-License-Identifier: Apache-2.0
// A run: every shape that was asked for, on every rank.
#pragma once

#include <functional>
#include <string>

#include "buffers.h"
#include "harness/world.h"
#include "job.h"
#include "options.h"

namespace bench {

// Calls `prepare` in the process of rank 0. Collective over processes: if it throws, all throw
// std::runtime_error, so that none waits for another.
void prepare_root(const harness::World& world, const std::function<void()>& prepare);

// Measures one shape, on the thread of a rank.
using Measure = std::function<void(const Job& job, int rank, Session& session)>;

// Collective over processes. Throws std::runtime_error if a rank fails, and before anything is
// measured if the library cannot serve a shape.
void run_shapes(harness::World& world, const Options& options, const Measure& measure);

// Shows on standard error what is being done, if somebody watches; an empty text clears it.
void show_progress(const std::string& text);

}  // namespace bench
