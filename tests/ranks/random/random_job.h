// SPDX-License-Identifier: Apache-2.0
// Random jobs over everything that the contract allows: shapes, types, layouts, capacities,
// routings.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <string>

#include "ranks/job.h"
#include "ranks/support.h"

// A shape for a group of jobs. `plain`: BF16 alone; the jobs then keep to the layouts flat and
// expert-major, to indices, and to what else needs no room in such a communicator.
hepConfig_t random_config(Random& random, int num_ranks, bool plain);

// What is left of a job while it is made smaller.
struct Size {
  int64_t max_tokens = INT64_MAX;  // of each rank
  uint64_t steps = ~uint64_t{0};   // bit i: the job keeps its operation i
};
constexpr int kMaxSteps = 12;

// Several routings at once; each is updated, and serves dispatches and combines, in any order. The
// same seed gives the same job, but for what its size leaves out.
Job random_job(uint64_t seed, const hepConfig_t& config, int num_ranks, const Size& size);

// The job's operations in words.
std::string describe(const Job& job);
