// SPDX-License-Identifier: Apache-2.0
// Every decision about launches: blocks, threads, stages, shared memory, and what is copied or
// sent. Pure functions of sizes and of a profile, without a GPU.
#pragma once

#include <vector>

#include "backend/cuda/kernel_args.h"
#include "backend/cuda/model.h"
#include "backend/cuda/profile.h"
#include "config/lanes.h"

namespace hep {

constexpr int kNumLayouts = 3;  // of hepLayout_t

// The GPU of a rank: its rates, and the SMs that the rank may choose from.
struct Gpu {
  const Profile* profile = &kH200;
  int32_t sms = kMaxBlocks;
};

// How the kernels of a lane are launched.
struct Plan {
  const Profile* profile;
  hepMode_t mode;
  Shape shape;
  int32_t routing_threads, routing_blocks;
  BlockBudget dispatch, combine;
  int32_t dispatch_blocks, combine_blocks;  // the most that a call takes
  int32_t dispatch_stages;                  // rows in flight in a block; 0: by the size of the rows
  int32_t combine_load_stages, combine_store_stages;
};

Plan make_plan(const Lane& lane, const Gpu& gpu);

// Blocks of the largest operation of a lane. A block may occupy an SM.
int32_t most_blocks(const Plan& plan);

// Blocks that operations of all lanes have when they run at the same time: one of each lane, the
// largest.
int32_t blocks_of_all(const std::vector<Lane>& lanes, const Gpu& gpu);

// What decides about the blocks of a call. The fewest are chosen that are nearly as fast as the
// most: see model.h.
struct DispatchWork {
  int32_t layout, num_tokens, top_k;
  int32_t alignment;
  int32_t row_bytes, scale_bytes;
  bool quantizes;
};
DispatchWork work_of(const DispatchArgs& args);
int32_t dispatch_blocks(const Plan& plan, const DispatchWork& work);

struct CombineWork {
  int32_t layout, num_tokens, top_k;
  int32_t row_bytes, partial_row_bytes;
  Sending sending;
};
CombineWork work_of(const CombineArgs& args);
int32_t combine_blocks(const Plan& plan, const CombineWork& work);

// A launch of combine: its blocks, and how many of them begin with the first half.
struct CombineGrid {
  int32_t blocks, first_half;
};
CombineGrid combine_grid(const Plan& plan, const CombineWork& work);

// What the model expects of so many blocks.
double expected_us(const Plan& plan, const DispatchWork& work, int32_t blocks);
double expected_us(const Plan& plan, const CombineWork& work, int32_t blocks);

// What the largest batch of a config takes, by layout: dispatch without quantisation, combine from
// any memory.
struct ChosenBlocks {
  int32_t dispatch[kNumLayouts], combine[kNumLayouts];
};
ChosenBlocks chosen_blocks(const Plan& plan, const hepConfig_t& config);

// A launch of a kernel.
struct Grid {
  int blocks, threads, shared_bytes;
};

Grid plan_map(const Plan& plan);
Grid plan_route(const Plan& plan, const Shape& shape);
Grid plan_quantize(const Plan& plan, const DispatchArgs& args);
Grid plan_gradients(const Plan& plan, const CombineArgs& args);

// The following choose the plan in the arguments, too.
Grid plan_dispatch(const Plan& plan, PipelineArgs* args);
Grid plan_update_and_dispatch(const Plan& plan, UpdateArgs* args);
Grid plan_combine(const Plan& plan, CombineArgs* args);

// What a rank signals in the first half of a combine whose sources all have as many tokens: a word
// for each chunk of each peer, which that peer polls, in so many signals of a pipeline.
struct CombineSignals {
  int32_t words, of_pipeline;
};

// Of arguments that plan_combine() has seen.
CombineSignals count_signals(const CombineArgs& args);

// Rows in flight in a block of a dispatch of rows of this size.
int32_t dispatch_stages(const Plan& plan, int32_t blocks, int64_t row_bytes, int layout);

// A low-latency dispatch copies rows of so many bytes in all, though the peers could read them in
// place.
int64_t most_copied_bytes(const Plan& plan, int32_t blocks);

// A low-latency combine sends so many outputs, though the peers could read them in place.
int64_t most_sent_rows(const Plan& plan, int32_t blocks, int64_t row_bytes);

}  // namespace hep
