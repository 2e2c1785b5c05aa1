// SPDX-License-Identifier: Apache-2.0
// Turns a caller's config into resolved values. These are pure functions, which need no GPU.
#pragma once

#include <hybridep.h>

#include "base/status.h"
#include "protocol/choices.h"
#include "protocol/shape.h"
#include "protocol/topology.h"

namespace hep {

// The shared memory of a block that rows in flight may take. The rest is for barriers and records.
constexpr int64_t kStageBytes = kMaxAssignBytes;

// The blocks of an operation: at most so many, or always as many.
struct BlockBudget {
  int32_t most;
  bool fixed;
};

// The share of a GPU that the operations of a lane may take, as the config says.
struct Budget {
  int32_t routing_threads, routing_blocks;
  BlockBudget dispatch, combine;
  // 0: chosen by the sizes of a call.
  int32_t dispatch_stages, combine_load_stages, combine_store_stages;
};

// Reads and checks a config. Replaces zeros by the defaults, and fields by the variables that are
// set. `backend` may stay auto, and domain_size 0: creation detects both.
Status resolve_config(const hepConfig_t* theirs, int num_ranks, hepConfig_t* resolved);

// Returns the init_timeout_ms that config and environment ask for, whatever else is wrong with
// them. If it is wrong itself, returns the default.
int32_t wanted_init_timeout_ms(const hepConfig_t* theirs);

// The following take a resolved config.
Shape make_shape(const hepConfig_t& config, int num_ranks);
// A domain_size of 0 stands for one domain of all ranks.
Topology make_topology(const hepConfig_t& config, int num_ranks);
// What depends on domains alone: their size, and room in network_bytes. Creation checks it again
// when it has detected domains, or has chosen a backend.
Status check_domains(const hepConfig_t& config, int num_ranks);
Budget make_budget(const hepConfig_t& config, hepMode_t mode);

// Returns the field in which two resolved configs differ, for example "hidden (7168 and 4096)".
// Empty if they agree.
std::string config_difference(const hepConfig_t& a, const hepConfig_t& b);

}  // namespace hep
