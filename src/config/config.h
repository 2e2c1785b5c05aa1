// SPDX-License-Identifier: Apache-2.0
// From a caller's config to what the library works with. Pure functions, without a GPU.
#pragma once

#include <hybridep.h>

#include "base/status.h"
#include "protocol/shape.h"

namespace hep {

// A launch of combine: its blocks, and how many of them begin with the first half.
struct CombineGrid {
  int32_t blocks, first_half;
};

// How the kernels of a communicator are launched.
struct Plan {
  int32_t routing_threads, routing_blocks;
  int32_t dispatch_blocks;
  int32_t dispatch_stages;        // rows in flight in a block; 0: by the size of the rows
  int32_t combine_blocks;         // the most of the following
  CombineGrid combine_in_place;   // where the peers read the rows
  CombineGrid combine_forward;    // where rows are sent as they are
  CombineGrid combine_reduce[2];  // where rows are reduced, in flat or in the expert layouts
  int32_t combine_load_stages, combine_store_stages;
};

// Reads and checks a config, and replaces zeros by the defaults and by what the environment says.
// `backend` stays auto if it is.
Status resolve_config(const hepConfig_t* theirs, int num_ranks, hepConfig_t* resolved);

// The init_timeout_ms that config and environment ask for, whatever else is wrong with them; the
// default if that is wrong itself.
int32_t wanted_init_timeout_ms(const hepConfig_t* theirs);

// The following take a resolved config.
Shape make_shape(const hepConfig_t& config, int num_ranks);
Plan make_plan(const hepConfig_t& config, int num_ranks, hepMode_t mode = hepModeThroughput);
// Rows in flight in a block of a dispatch of rows of this size.
int32_t dispatch_stages(const Plan& plan, int64_t row_bytes, int layout);

// Says in which field two resolved configs differ, for example "hidden (7168 and 4096)"; empty if
// they agree.
std::string config_difference(const hepConfig_t& a, const hepConfig_t& b);

}  // namespace hep
