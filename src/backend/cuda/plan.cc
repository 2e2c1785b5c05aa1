// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/plan.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <iterator>

#include "backend/cuda/blocks/combine.h"
#include "backend/cuda/blocks/dispatch.h"
#include "backend/cuda/blocks/fused.h"
#include "backend/cuda/blocks/route.h"
#include "protocol/choices.h"
#include "protocol/data_type.h"

namespace hep {
namespace {

// -------------------------------------------------------------------------------------- dispatch

constexpr int kMinDispatchStages = 2;
constexpr int kFewDispatchStages = 4;  // chosen at least, if they fit
constexpr int kMaxDispatchStages = 64;
static_assert(kStageBytes < dispatch::kMaxDynamicBytes);

int32_t default_dispatch_stages(const Plan& plan, int32_t blocks, int64_t row_bytes, int layout) {
  const int64_t in_flight = layout == hepLayoutFlat ? plan.profile->flat_bytes_in_flight
                                                    : plan.profile->expert_bytes_in_flight;
  const int64_t wanted = std::max<int64_t>(in_flight / (blocks * row_bytes), kFewDispatchStages);
  return static_cast<int32_t>(std::clamp<int64_t>(
      wanted, kMinDispatchStages, std::min<int64_t>(kStageBytes / row_bytes, kMaxDispatchStages)));
}

int shared_bytes_of(const PipelineArgs& args) {
  const int stage_bytes = dispatch::stage_bytes(args.call.layout, args.plan.rows_per_stage,
                                                args.rows.row_bytes, args.top_k);
  return args.plan.pipelines * dispatch::pipeline_bytes(args.plan.stages, stage_bytes);
}

// The stages of each pipeline, and how many rows one holds. Returns the shared memory that all
// take.
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

// Scales that the copy engine can bring to their places come with their rows: asked for when those
// are placed, they come two microseconds later. With larger ones less than three stages might fit.
int choose_stage_scale_bytes(const UpdateArgs& args) {
  const DispatchCall& call = args.call;
  const int bytes = args.context.shape().scale_bytes;
  const bool fits = bytes % kRowGranularity == 0 && bytes <= args.rows.row_bytes / 4 &&
                    reinterpret_cast<uintptr_t>(call.row_scales) % kRowGranularity == 0;
  return call.row_scales != nullptr && call.row_scales_stride == 0 && fits ? bytes : 0;
}

// --------------------------------------------------------------------------------------- combine

// The blocks of the first half go evenly to all destinations, if there are enough: see
// combine/send.cuh.
int32_t spread(double wanted, int32_t blocks, int32_t destinations) {
  const auto count = static_cast<int32_t>(std::lround(std::min<double>(blocks, wanted)));
  if (count < destinations || destinations == 0) return std::min(count, destinations);
  const int32_t fewer = count - count % destinations, more = fewer + destinations;
  return more <= blocks && more - count < count - fewer ? more : fewer;
}

// As many blocks for each half of combine as fill NVLink, of those of the call. More would not be
// faster, and blocks that wait for partial sums slow the others down: on 4 H200s, 9 blocks that
// forward and 23 that only add took six times as long as 9 and 7.
struct CombinePlanner {
  const Profile& profile;
  int32_t budget;  // of blocks
  bool fixed;      // all of them are to be used,
  bool all_first;  // and in the first half, too: with few tokens the halves follow one another
  int num_ranks;
  double partials;  // of a token

  CombinePlanner(const Plan& plan, const CombineWork& work)
      : profile(*plan.profile),
        budget(combine_blocks(plan, work)),
        fixed(plan.combine.fixed || plan.mode == hepModeLowLatency),
        all_first(plan.mode == hepModeLowLatency),
        num_ranks(plan.shape.num_ranks),
        partials(ranks_of_token(num_ranks, work.top_k)) {}

  CombineGrid grid(const CombineWork& work) const {
    switch (work.sending) {
      case Sending::kNone: return {limited(2 * reducers(partials)), 0};
      case Sending::kRows:
        return grid(first_half(profile.link_rate / profile.forward_rate, num_ranks - 1),
                    partials / num_ranks);
      default: return work.layout == hepLayoutFlat ? convert() : reduce(work.top_k);
    }
  }

 private:
  // Flat rows that get a weight or another type pass the first half like those that are summed,
  // this rank's own included. A row of FP16 is as long as its partial sum of BF16, one of FP32
  // twice as long: together they are half as many bytes more than with forwarding. The mean is
  // taken.
  CombineGrid convert() const {
    const double all_rows = num_ranks / std::max(num_ranks - 1.0, 1.0);
    const double wanted = 1.25 * all_rows * profile.link_rate / profile.forward_rate;
    return grid(first_half(wanted, std::max(num_ranks - 1, 1)), partials / num_ranks);
  }
  CombineGrid reduce(double rows_of_token) const {
    const double own = rows_of_token / num_ranks;
    return grid(first_half(reducers(rows_of_token - own), std::max(num_ranks - 1, 1)), own);
  }

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

// Tokens are taken a few at a time: what they are made of is looked up together, which takes as
// long as adding up one more. A lane looks up a part, and no task reaches over the end of a chunk.
constexpr int kMaxTaskShift = 3;
static_assert(chunk_shift(kH200.few_tokens + 1, 1) >= kMaxTaskShift);
static_assert(chunk_shift(kBlackwell.few_tokens + 1, 1) >= kMaxTaskShift);

// Rows that are added up as they lie need little looking up: a pipeline has so many tasks at least.
// (2 H200s, flat, 512 tokens: with 64 pipelines 37.2 us, 39.0 with half as many tasks; with 32
// pipelines 39.2, and 46.4 token by token.)
constexpr int kFewestRowTasks = 4;

// So that the pipeline that has most is done soonest. (2 H200s, expert-padded, 64 pipelines: 128
// tokens take 23.5 us one by one, 22.5 by twos; 512 tokens 66, and 54 by eights.)
int choose_task_shift(const CombineArgs& args, const Profile& profile, int blocks) {
  int most = kMaxTaskShift;
  while (1 << most > kWarpSize / args.context.shape().max_partials()) --most;
  if (args.num_tokens > profile.few_tokens) return most;
  const int fewest_tasks = sends_unmodified_rows(args.call) ? kFewestRowTasks : 1;
  int best = 0, least = INT_MAX;
  most = std::min(most, chunk_shift(args.num_tokens, args.context.num_ranks()));
  for (int shift = 0; shift <= most; ++shift) {
    const int tasks = ceil_div(args.num_tokens, args.plan.pipelines * blocks << shift);
    if (shift > 0 && tasks < fewest_tasks) break;
    const int time = tasks * ((1 << shift) + 1);
    if (time < least) best = shift;
    least = std::min(time, least);
  }
  return best;
}

// --------------------------------------------------------------------------------------- blocks

// First and second half of combine.
constexpr int32_t kFewestCombineBlocks = 2;

// A rank with few tokens may receive as many rows as the others: its batch counts as at least this
// part of the largest one.
constexpr int32_t kSmallestPart = 4;

Demand demand_of(const Plan& plan, int32_t num_tokens, int32_t top_k) {
  const Shape& shape = plan.shape;
  return {plan.mode == hepModeLowLatency, shape.num_ranks, shape.num_local_experts(),
          std::max(num_tokens, ceil_div(shape.max_tokens, kSmallestPart)), top_k};
}

Traffic traffic_of(const Plan& plan, const DispatchWork& work) {
  // A quantised row has one byte an element.
  const int32_t x_row_bytes = work.row_bytes * element_bytes(hepTypeBfloat16);
  return traffic_of(
      DispatchDemand{demand_of(plan, work.num_tokens, work.top_k), work.layout, work.alignment,
                     int64_t{work.row_bytes} + work.scale_bytes, work.quantizes ? x_row_bytes : 0},
      *plan.profile);
}

Traffic traffic_of(const Plan& plan, const CombineWork& work) {
  return traffic_of(CombineDemand{demand_of(plan, work.num_tokens, work.top_k), work.layout,
                                  work.sending, work.row_bytes, work.partial_row_bytes},
                    *plan.profile);
}

int32_t bounded(const BlockBudget& budget, const Gpu& gpu) {
  return budget.fixed ? budget.most : std::min(budget.most, gpu.sms);
}

constexpr int32_t kLayouts[] = {hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded};
static_assert(std::size(kLayouts) == kNumLayouts);

// Rows to which grouped GEMMs mostly want experts' blocks aligned.
constexpr int32_t kGemmAlignment = 128;

// What the largest batches take of the bound.
int32_t largest_dispatch(const Plan& plan) {
  const Shape& shape = plan.shape;
  int32_t most = 1;
  for (const int32_t layout : kLayouts)
    for (const bool quantizes : {false, shape.scale_bytes > 0})
      most = std::max(
          most, dispatch_blocks(plan, {layout, shape.max_tokens, shape.max_top_k, kGemmAlignment,
                                       shape.row_bytes, shape.scale_bytes, quantizes}));
  return most;
}

int32_t largest_combine(const Plan& plan) {
  const Shape& shape = plan.shape;
  int32_t most = kFewestCombineBlocks;
  for (const int32_t layout : kLayouts)
    for (const Sending sending : {Sending::kNone, Sending::kRows, Sending::kSums})
      most =
          std::max(most, combine_blocks(plan, {layout, shape.max_tokens, shape.max_top_k,
                                               shape.row_bytes, shape.partial_row_bytes, sending}));
  return most;
}

// A stage takes a pipeline about 300 ns, whatever it holds (2 H200s). So a block takes as long for
// a row as its segments, over the pipelines that share rows out: the fewer reducers a pipeline has,
// the more pipelines there are. Of equal choices the one with the fewest segments is taken, and
// then with the fewest reducers.
int choose_reducers(int row_bytes, int partial_row_bytes) {
  int best = 0, least_segments = 0;
  for (int reducers = 1; reducers <= combine::kMaxReducers; ++reducers) {
    const int segments = combine::num_segments(row_bytes, reducers) +
                         combine::num_segments(partial_row_bytes, reducers);
    const int pipelines = combine::num_pipelines(reducers);
    const int time = segments * combine::num_pipelines(best), least = least_segments * pipelines;
    if (best > 0 && (time > least || (time == least && segments >= least_segments))) continue;
    best = reducers;
    least_segments = segments;
  }
  return best;
}

}  // namespace

Plan make_plan(const Lane& lane, const Gpu& gpu) {
  const Budget& budget = lane.budget;
  Plan plan{};
  plan.profile = gpu.profile;
  plan.mode = lane.mode;
  plan.shape = lane.shape;
  plan.routing_threads = budget.routing_threads;
  plan.routing_blocks = budget.routing_blocks;
  plan.dispatch = {bounded(budget.dispatch, gpu), budget.dispatch.fixed};
  plan.combine = {bounded(budget.combine, gpu), budget.combine.fixed};
  plan.dispatch_blocks = plan.dispatch.most;
  plan.combine_blocks = plan.combine.most;
  plan.dispatch_blocks = largest_dispatch(plan);
  plan.combine_blocks = largest_combine(plan);
  plan.dispatch_stages = budget.dispatch_stages;
  plan.combine_load_stages = budget.combine_load_stages;
  plan.combine_store_stages = budget.combine_store_stages;
  return plan;
}

int32_t most_blocks(const Plan& plan) {
  return std::max({plan.routing_blocks, plan.dispatch_blocks, plan.combine_blocks});
}

int32_t blocks_of_all(const std::vector<Lane>& lanes, const Gpu& gpu) {
  int32_t blocks = 0;
  for (const Lane& lane : lanes) blocks += most_blocks(make_plan(lane, gpu));
  return blocks;
}

DispatchWork work_of(const DispatchArgs& args) {
  const DispatchCall& call = args.call;
  return {call.layout,
          args.num_tokens,
          args.top_k,
          args.alignment,
          args.rows.row_bytes,
          call.row_scales != nullptr ? args.context.shape().scale_bytes : 0,
          call.quantize != hepQuantizeNone};
}

int32_t dispatch_blocks(const Plan& plan, const DispatchWork& work) {
  if (plan.dispatch.fixed) return plan.dispatch.most;
  const int32_t blocks = fewest_blocks(traffic_of(plan, work), plan.dispatch.most, *plan.profile);
  return std::min(blocks, plan.dispatch_blocks);
}

double expected_us(const Plan& plan, const DispatchWork& work, int32_t blocks) {
  return model_us(traffic_of(plan, work), blocks, *plan.profile);
}

CombineWork work_of(const CombineArgs& args) {
  const Sending sending = never_sends_outputs(args)          ? Sending::kNone
                          : sends_unmodified_rows(args.call) ? Sending::kRows
                                                             : Sending::kSums;
  return {args.call.layout, args.num_tokens,        args.top_k,
          args.row_bytes,   args.partial_row_bytes, sending};
}

int32_t combine_blocks(const Plan& plan, const CombineWork& work) {
  if (plan.combine.fixed) return plan.combine.most;
  const int32_t blocks = fewest_blocks(traffic_of(plan, work), plan.combine.most, *plan.profile);
  return std::clamp(blocks, kFewestCombineBlocks, plan.combine_blocks);
}

double expected_us(const Plan& plan, const CombineWork& work, int32_t blocks) {
  return model_us(traffic_of(plan, work), blocks, *plan.profile);
}

CombineGrid combine_grid(const Plan& plan, const CombineWork& work) {
  return CombinePlanner(plan, work).grid(work);
}

ChosenBlocks chosen_blocks(const Plan& plan, const hepConfig_t& config) {
  const auto row_bytes = [&](int32_t type) { return config.hidden * element_bytes(type); };
  const auto sending = [&](int32_t layout) {
    return layout == hepLayoutFlat && config.combine_type == config.partial_type ? Sending::kRows
                                                                                 : Sending::kSums;
  };
  const int32_t tokens = plan.shape.max_tokens, top_k = plan.shape.max_top_k;
  ChosenBlocks chosen;
  for (const int32_t layout : kLayouts) {
    chosen.dispatch[layout] = dispatch_blocks(
        plan, {layout, tokens, top_k, 1, row_bytes(config.type), config.scale_bytes, false});
    chosen.combine[layout] =
        combine_blocks(plan, {layout, tokens, top_k, row_bytes(config.combine_type),
                              row_bytes(config.partial_type), sending(layout)});
  }
  return chosen;
}

int32_t dispatch_stages(const Plan& plan, int32_t blocks, int64_t row_bytes, int layout) {
  return plan.dispatch_stages != 0 ? plan.dispatch_stages
                                   : default_dispatch_stages(plan, blocks, row_bytes, layout);
}

int64_t most_copied_bytes(const Plan& plan, int32_t blocks) {
  return blocks * plan.profile->copied_bytes_of_block;
}

int64_t most_sent_rows(const Plan& plan, int32_t blocks, int64_t row_bytes) {
  return blocks * plan.profile->sent_bytes_of_block / row_bytes;
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

Grid plan_quantize(const Plan& plan, const DispatchArgs& args) {
  return {dispatch_blocks(plan, work_of(args)), dispatch::kQuantizeThreads, 0};
}

Grid plan_gradients(const Plan& plan, const CombineArgs& args) {
  return {combine_blocks(plan, work_of(args)), combine::kGradientThreads, 0};
}

Grid plan_dispatch(const Plan& plan, PipelineArgs* args) {
  const int32_t blocks = dispatch_blocks(plan, work_of(*args));
  const int rows_in_flight = dispatch_stages(plan, blocks, args->rows.row_bytes, args->call.layout);
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
  return {blocks, dispatch::kThreads, shared_bytes};
}

Grid plan_update_and_dispatch(const Plan& plan, UpdateArgs* args) {
  const int32_t blocks = dispatch_blocks(plan, work_of(*args));
  args->plan.stage_scale_bytes = choose_stage_scale_bytes(*args);
  const int stage_bytes = fused::stage_bytes(args->rows.row_bytes, args->plan.stage_scale_bytes);
  int& stages = args->plan.stages;
  const auto shared_bytes = [&] {
    return static_cast<int>(assign_bytes(args->context.shape())) + stages * stage_bytes +
           ring_control_bytes(stages, sizeof(dispatch::RowItem));
  };
  stages = dispatch_stages(plan, blocks, args->rows.row_bytes, args->call.layout);
  while (shared_bytes() > fused::kMaxDynamicBytes) --stages;
  return {blocks, fused::kThreads, shared_bytes()};
}

Grid plan_combine(const Plan& plan, CombineArgs* args) {
  CombinePlan& chosen = args->plan;
  chosen.reducers = choose_reducers(args->row_bytes, args->partial_row_bytes);
  chosen.pipelines = combine::num_pipelines(chosen.reducers);
  chosen.segment_bytes = combine::segment_bytes(args->row_bytes, chosen.reducers);
  chosen.partial_segment_bytes = combine::segment_bytes(args->partial_row_bytes, chosen.reducers);
  const int stage_bytes = std::max(chosen.segment_bytes, chosen.partial_segment_bytes);
  chosen.load_stages =
      plan.combine_load_stages > 0 ? plan.combine_load_stages : combine::kMaxLoadStages;
  const CombineGrid grid = combine_grid(plan, work_of(*args));
  chosen.first_half_blocks = grid.first_half;
  const auto shared_bytes = [&] {
    return chosen.pipelines * combine::pipeline_bytes(chosen.load_stages, stage_bytes);
  };
  while (shared_bytes() > kMaxDynamicSharedBytes) --chosen.load_stages;
  chosen.store_stages = std::min(
      plan.combine_store_stages > 0 ? plan.combine_store_stages : combine::kDefaultStoreStages,
      chosen.load_stages - 1);
  const int blocks = args->step == Step::kSend ? std::max(grid.first_half, 1) : grid.blocks;
  chosen.task_shift = choose_task_shift(*args, *plan.profile, blocks);
  const int warps = chosen.pipelines * combine::warps_of_pipeline(chosen.reducers);
  return {blocks, warps * kWarpSize, shared_bytes()};
}

CombineSignals count_signals(const CombineArgs& args) {
  const int ranks = args.context.num_ranks();
  const int pipelines = args.plan.pipelines * args.plan.first_half_blocks;
  const int words = num_chunks(args.num_tokens, ranks) * (ranks - 1);
  if (words == 0 || pipelines == 0) return {0, 0};
  return {words,
          ceil_div(ceil_div(words, pipelines), combine::chunks_per_signal(words, pipelines))};
}

}  // namespace hep
