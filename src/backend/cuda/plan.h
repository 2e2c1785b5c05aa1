// SPDX-License-Identifier: Apache-2.0
// Every decision about launches: blocks, threads, stages, shared memory, and what is copied or sent. Pure
// functions of sizes and of a profile, without a GPU.
#pragma once

#include <vector>

#include "backend/cuda/kernel_args.h"
#include "backend/cuda/profile.h"
#include "config/lanes.h"

namespace hep {

// A launch of combine: its blocks, and how many of them begin with the first half.
struct CombineGrid {
  int32_t blocks, first_half;
};

// How the kernels of a lane are launched, whatever the call.
struct Plan {
  const Profile* profile;
  int32_t routing_threads, routing_blocks;
  int32_t dispatch_blocks;
  int32_t dispatch_stages;             // rows in flight in a block; 0: by the size of the rows
  int32_t combine_blocks;              // the most of the following
  CombineGrid combine_in_place;        // where the peers read the rows
  CombineGrid combine_forward;         // where rows are sent as they are
  CombineGrid combine_reduce_flat;     // where rows are reduced
  CombineGrid combine_reduce_experts;  // the same in the expert layouts
  int32_t combine_load_stages, combine_store_stages;
};

Plan make_plan(const Lane& lane, const Profile& profile);

// Blocks of the largest operation of a lane. A block may occupy an SM.
int32_t most_blocks(const Plan& plan);

// Blocks that operations of all lanes have when they run at the same time: one of each lane, the largest.
int32_t blocks_of_all(const std::vector<Lane>& lanes, const Profile& profile);

// A launch of a kernel.
struct Grid {
  int blocks, threads, shared_bytes;
};

Grid plan_map(const Plan& plan);
Grid plan_route(const Plan& plan, const Shape& shape);
Grid plan_quantize(const Plan& plan);
Grid plan_gradients(const Plan& plan);

// The following choose the plan in the arguments, too.
Grid plan_dispatch(const Plan& plan, PipelineArgs* args);
Grid plan_update_and_dispatch(const Plan& plan, UpdateArgs* args);
Grid plan_combine(const Plan& plan, CombineArgs* args);

// Rows in flight in a block of a dispatch of rows of this size.
int32_t dispatch_stages(const Plan& plan, int64_t row_bytes, int layout);

// A low-latency dispatch copies rows of so many bytes in all, though the peers could read them in place.
int64_t most_copied_bytes(const Plan& plan);

// A low-latency combine sends so many outputs, though the peers could read them in place.
int64_t most_sent_rows(const Plan& plan, int64_t row_bytes);

}  // namespace hep
