// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/plan.h"

#include <algorithm>
#include <climits>
#include <cmath>

#include "backend/cuda/blocks/combine.h"
#include "backend/cuda/blocks/dispatch.h"
#include "backend/cuda/blocks/fused.h"
#include "backend/cuda/blocks/route.h"
#include "protocol/choices.h"

namespace hep {
namespace {

// -------------------------------------------------------------------------------------- dispatch

constexpr int kMinDispatchStages = 2;
constexpr int kFewDispatchStages = 4;  // chosen at least, if they fit
constexpr int kMaxDispatchStages = 64;
static_assert(kStageBytes < dispatch::kMaxDynamicBytes);

int32_t default_dispatch_stages(const Plan& plan, int64_t row_bytes, int layout) {
  const int64_t in_flight = layout == hepLayoutFlat ? plan.profile->flat_bytes_in_flight
                                                    : plan.profile->expert_bytes_in_flight;
  const int64_t wanted =
      std::max<int64_t>(in_flight / (plan.dispatch_blocks * row_bytes), kFewDispatchStages);
  return static_cast<int32_t>(std::clamp<int64_t>(
      wanted, kMinDispatchStages, std::min<int64_t>(kStageBytes / row_bytes, kMaxDispatchStages)));
}

int shared_bytes_of(const PipelineArgs& args) {
  const int stage_bytes = dispatch::stage_bytes(args.call.layout, args.plan.rows_per_stage,
                                                args.rows.row_bytes, args.top_k);
  return args.plan.pipelines * dispatch::pipeline_bytes(args.plan.stages, stage_bytes);
}

// The stages of each pipeline, and how many rows one holds. Returns the shared memory that all take.
int cut_stages(const Profile& profile, int rows_in_flight, PipelineArgs* args) {
  PipelinePlan& plan = args->plan;
  const int rows = rows_in_flight / plan.pipelines;
  plan.rows_per_stage = args->call.layout != hepLayoutFlat
                            ? 1
                            : std::clamp(std::min(profile.stage_target_bytes / args->rows.row_bytes,
                                                  rows / dispatch::kFewStages),
                                         1, dispatch::kMaxRowsPerStage);
  plan.stages = rows / plan.rows_per_stage;
  return shared_bytes_of(*args);
}

// Scales that the copy engine can bring to their places come with their rows: asked for when those are placed, they
// come two microseconds later. With larger ones less than three stages might fit.
int choose_stage_scale_bytes(const UpdateArgs& args) {
  const DispatchCall& call = args.call;
  const int bytes = args.context.shape().scale_bytes;
  const bool fits = bytes % kRowGranularity == 0 && bytes <= args.rows.row_bytes / 4 &&
                    reinterpret_cast<uintptr_t>(call.row_scales) % kRowGranularity == 0;
  return call.row_scales != nullptr && call.row_scales_stride == 0 && fits ? bytes : 0;
}

// --------------------------------------------------------------------------------------- combine

// The blocks of the first half go evenly to all destinations, if there are enough: see combine/send.cuh.
int32_t spread(double wanted, int32_t blocks, int32_t destinations) {
  const auto count = static_cast<int32_t>(std::lround(std::min<double>(blocks, wanted)));
  if (count < destinations || destinations == 0) return std::min(count, destinations);
  const int32_t fewer = count - count % destinations, more = fewer + destinations;
  return more <= blocks && more - count < count - fewer ? more : fewer;
}

// As many blocks for each half of combine as fill NVLink, within the budget. More would not be faster,
// and blocks that wait for partial sums slow the others down: on 4 H200s, 9 blocks that forward and 23
// that only add took six times as long as 9 and 7.
struct CombinePlanner {
  const Profile& profile;
  int32_t budget;  // of blocks
  bool fixed;      // all of them are to be used,
  bool all_first;  // and in the first half, too: with few tokens the halves follow one another
  int num_ranks;
  double partials;  // of a token, with uniform routing: R * (1 - (1 - 1/R)^K)

  CombinePlanner(const Lane& lane, const Profile& of_device)
      : profile(of_device),
        budget(lane.budget.combine_blocks),
        fixed(lane.budget.takes_all_combine_blocks),
        all_first(lane.mode == hepModeLowLatency),
        num_ranks(lane.shape.num_ranks),
        partials(num_ranks * (1 - std::pow(1 - 1.0 / num_ranks, lane.shape.max_top_k))) {}

  CombineGrid in_place() const { return {limited(2 * reducers(partials)), 0}; }
  CombineGrid forward() const {
    return grid(first_half(profile.link_rate / profile.forward_rate, num_ranks - 1),
                partials / num_ranks);
  }
  CombineGrid reduce(double rows_of_token) const {
    const double own = rows_of_token / num_ranks;
    return grid(first_half(reducers(rows_of_token - own), std::max(num_ranks - 1, 1)), own);
  }

 private:
  int32_t first_half(double wanted, int32_t destinations) const {
    if (all_first) return destinations == 0 ? 0 : budget;
    return spread(wanted, budget, destinations);
  }

  // The second half reads what the peers sent, and this rank's own rows.
  CombineGrid grid(int32_t first_half, double own_rows) const {
    return {limited(first_half + reducers(partials - partials / num_ranks + own_rows)), first_half};
  }

  // Blocks that read so many rows of each token while NVLink carries its partial sums.
  double reducers(double rows_of_token) const {
    if (num_ranks == 1) return budget;
    const double sent = partials * (num_ranks - 1) / num_ranks;
    return profile.link_rate / profile.reduce_rate * rows_of_token / sent;
  }

  int32_t limited(double wanted) const {
    return fixed ? budget : static_cast<int32_t>(std::lround(std::min<double>(budget, wanted)));
  }
};

CombineGrid choose_grid(const CombineArgs& args, const Plan& plan) {
  if (never_sends_outputs(args)) return plan.combine_in_place;
  if (sends_unmodified_rows(args.call)) return plan.combine_forward;
  return args.call.layout == hepLayoutFlat ? plan.combine_reduce_flat : plan.combine_reduce_experts;
}

// Tokens are taken a few at a time: what they are made of is looked up together, which takes as long as adding up
// one more. A lane looks up a part, and no task reaches over the end of a chunk.
constexpr int kMaxTaskShift = 3;
static_assert(chunk_tokens(kH200.few_tokens + 1) % (1 << kMaxTaskShift) == 0);
static_assert(chunk_tokens(kBlackwell.few_tokens + 1) % (1 << kMaxTaskShift) == 0);

// Rows that are added up as they lie need little looking up: a pipeline has so many tasks at least. (2 H200s, flat,
// 512 tokens: with 64 pipelines 37.2 us, 39.0 with half as many tasks; with 32 pipelines 39.2, and 46.4 token
// by token.)
constexpr int kFewestRowTasks = 4;

// So that the pipeline that has most is done soonest. (2 H200s, expert-padded, 64 pipelines: 128 tokens take 23.5 us
// one by one, 22.5 by twos; 512 tokens 66, and 54 by eights.)
int choose_task_shift(const CombineArgs& args, const Profile& profile, int blocks) {
  int most = kMaxTaskShift;
  while (1 << most > kWarpSize / args.context.shape().max_partials()) --most;
  if (args.num_tokens > profile.few_tokens) return most;
  const int fewest_tasks = sends_unmodified_rows(args.call) ? kFewestRowTasks : 1;
  int best = 0, least = INT_MAX;
  for (int shift = 0; shift <= most && 1 << shift <= chunk_tokens(args.num_tokens); ++shift) {
    const int tasks = ceil_div(args.num_tokens, combine::kPipelines * blocks << shift);
    if (shift > 0 && tasks < fewest_tasks) break;
    const int time = tasks * ((1 << shift) + 1);
    if (time < least) best = shift;
    least = std::min(time, least);
  }
  return best;
}

}  // namespace

Plan make_plan(const Lane& lane, const Profile& profile) {
  const Budget& budget = lane.budget;
  Plan plan{};
  plan.profile = &profile;
  plan.routing_threads = budget.routing_threads;
  plan.routing_blocks = budget.routing_blocks;
  plan.dispatch_blocks = budget.dispatch_blocks;
  plan.dispatch_stages = budget.dispatch_stages;
  const CombinePlanner combine(lane, profile);
  plan.combine_in_place = combine.in_place();
  plan.combine_forward = combine.forward();
  plan.combine_reduce_flat = combine.reduce(combine.partials);
  plan.combine_reduce_experts = combine.reduce(lane.shape.max_top_k);
  plan.combine_blocks =
      std::max({plan.combine_in_place.blocks, plan.combine_forward.blocks,
                plan.combine_reduce_flat.blocks, plan.combine_reduce_experts.blocks});
  plan.combine_load_stages = budget.combine_load_stages;
  plan.combine_store_stages = budget.combine_store_stages;
  return plan;
}

int32_t most_blocks(const Plan& plan) {
  return std::max({plan.routing_blocks, plan.dispatch_blocks, plan.combine_blocks});
}

int32_t blocks_of_all(const std::vector<Lane>& lanes, const Profile& profile) {
  int32_t blocks = 0;
  for (const Lane& lane : lanes) blocks += most_blocks(make_plan(lane, profile));
  return blocks;
}

int32_t dispatch_stages(const Plan& plan, int64_t row_bytes, int layout) {
  return plan.dispatch_stages != 0 ? plan.dispatch_stages
                                   : default_dispatch_stages(plan, row_bytes, layout);
}

int64_t most_copied_bytes(const Plan& plan) {
  return plan.dispatch_blocks * plan.profile->copied_bytes_of_block;
}

int64_t most_sent_rows(const Plan& plan, int64_t row_bytes) {
  return plan.combine_in_place.blocks * plan.profile->sent_bytes_of_block / row_bytes;
}

Grid plan_map(const Plan& plan) { return {plan.routing_blocks, route::kMapThreads, 0}; }

// Many experts leave room for fewer warps; two are needed to receive.
Grid plan_route(const Plan& plan, const Shape& shape) {
  int warps = std::min(plan.routing_threads, route::kMaxThreads) / kWarpSize;
  const auto shared_bytes = [&] {
    return static_cast<int>(std::max(route::send_bytes(shape, warps), route::receive_bytes(shape)));
  };
  while (warps > 2 && shared_bytes() > kMaxDynamicSharedBytes) --warps;
  return {plan.routing_blocks, warps * kWarpSize, shared_bytes()};
}

Grid plan_quantize(const Plan& plan) {
  return {plan.dispatch_blocks, dispatch::kQuantizeThreads, 0};
}

Grid plan_gradients(const Plan& plan) {
  return {plan.combine_blocks, combine::kGradientThreads, 0};
}

Grid plan_dispatch(const Plan& plan, PipelineArgs* args) {
  const int rows_in_flight = dispatch_stages(plan, args->rows.row_bytes, args->call.layout);
  int& pipelines = args->plan.pipelines;
  pipelines = std::clamp(rows_in_flight / dispatch::kFewRowsOfPipeline, 1, dispatch::kPipelines);
  int shared_bytes = cut_stages(*plan.profile, rows_in_flight, args);
  while (shared_bytes > dispatch::kMaxDynamicBytes && pipelines > 1) {
    --pipelines;
    shared_bytes = cut_stages(*plan.profile, rows_in_flight, args);
  }
  while (shared_bytes > dispatch::kMaxDynamicBytes) {
    --args->plan.stages;
    shared_bytes = shared_bytes_of(*args);
  }
  return {plan.dispatch_blocks, dispatch::kThreads, shared_bytes};
}

Grid plan_update_and_dispatch(const Plan& plan, UpdateArgs* args) {
  args->plan.stage_scale_bytes = choose_stage_scale_bytes(*args);
  const int stage_bytes = fused::stage_bytes(args->rows.row_bytes, args->plan.stage_scale_bytes);
  int& stages = args->plan.stages;
  const auto shared_bytes = [&] {
    return static_cast<int>(assign_bytes(args->context.shape())) + stages * stage_bytes +
           ring_control_bytes(stages, sizeof(dispatch::RowItem));
  };
  stages = dispatch_stages(plan, args->rows.row_bytes, args->call.layout);
  while (shared_bytes() > fused::kMaxDynamicBytes) --stages;
  return {plan.dispatch_blocks, fused::kThreads, shared_bytes()};
}

Grid plan_combine(const Plan& plan, CombineArgs* args) {
  CombinePlan& chosen = args->plan;
  const int stage_bytes = combine::stage_bytes(std::max(args->row_bytes, args->partial_row_bytes));
  chosen.load_stages =
      plan.combine_load_stages > 0 ? plan.combine_load_stages : combine::kMaxLoadStages;
  const CombineGrid grid = choose_grid(*args, plan);
  chosen.first_half_blocks = grid.first_half;
  const auto shared_bytes = [&] {
    return combine::kPipelines * combine::pipeline_bytes(chosen.load_stages, stage_bytes);
  };
  while (shared_bytes() > kMaxDynamicSharedBytes) --chosen.load_stages;
  chosen.store_stages = std::min(
      plan.combine_store_stages > 0 ? plan.combine_store_stages : combine::kDefaultStoreStages,
      chosen.load_stages - 1);
  const int blocks = args->step == Step::kSend ? std::max(grid.first_half, 1) : grid.blocks;
  chosen.task_shift = choose_task_shift(*args, *plan.profile, blocks);
  return {blocks, combine::kThreads, shared_bytes()};
}

}  // namespace hep
