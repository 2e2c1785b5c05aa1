// SPDX-License-Identifier: Apache-2.0
// A run measures every shape on every rank. This header also has what the ranks do together.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "buffers.h"
#include "harness/world.h"
#include "job.h"
#include "options.h"

namespace bench {

// Parses the command line, starts the ranks, and calls `run`, which returns whether no value was
// wrong. It throws std::runtime_error if something failed. Returns the exit status of the program.
// `options` are those that `app` fills.
int run_program(CLI::App& app, const char* name, const Options& options, int argc, char** argv,
                const std::function<bool(harness::World&)>& run);

// Calls `prepare` in the process of rank 0. Collective over processes: if it throws, all throw
// std::runtime_error, so that none waits for another.
void prepare_root(const harness::World& world, const std::function<void()>& prepare);

// Measures one shape, on the thread of a rank.
using Measure = std::function<void(const Job& job, int rank, Session& session)>;

// Collective over processes. Throws std::runtime_error if a rank fails. If the library cannot serve
// a shape, it throws before anything is measured.
void run_shapes(harness::World& world, const Options& options, const Measure& measure);

// Shows a text on standard error if that is a terminal. An empty text clears it.
void show_progress(const std::string& text);

// --------------------------------------------------------------- what the ranks do together

// Throws std::runtime_error if another rank failed.
void meet(harness::World& world, int rank);

// Returns whether a rank may enqueue operations before its peers have enqueued the ones before
// them. Ranks that share a GPU may not, because CUDA may keep a kernel waiting behind those of
// other ranks. The host backend has no queue.
bool enqueues_ahead(const harness::World& world);

// Enqueues calls behind a gate on all ranks, opens the gate, and waits until the calls are done.
// Only for ranks that may enqueue ahead.
void run_gated(harness::World& world, int rank, harness::Stream& stream,
               const std::function<void()>& enqueue);

// Returns the measurements of all ranks, rank by rank.
std::vector<double> gather(harness::World& world, int rank, const std::vector<double>& mine);

// Returns for each iteration the time of the slowest rank.
std::vector<double> slowest(harness::World& world, int rank, const std::vector<double>& mine);

int64_t sum_over_ranks(harness::World& world, int rank, int64_t mine);

double median(std::vector<double> values);

}  // namespace bench
