// SPDX-License-Identifier: Apache-2.0
// From a resolved config to launches and sizes.
#include "backend/cuda/plan.h"
#include "backend/cuda/blocks/combine.h"
#include "backend/cuda/blocks/dispatch.h"
#include "backend/cuda/blocks/fused.h"
#include "config/lanes.h"
#include "protocol/data_type.h"
#include "protocol/location.h"
#include "protocol/shape.h"
#include "protocol/window_layout.h"
#include "unit/config/config_fixture.h"

namespace hep {
namespace {

using ConfigPlan = Config;
using ConfigWorkspace = Config;

// -------------------------------------------------------------------------------------- plan

constexpr int kSms = 132;

// Of a lane, without its window.
Plan plan_of(const hepConfig_t& config, int num_ranks, hepMode_t mode = hepModeThroughput,
             const Profile& profile = kH200) {
  Lane lane{};
  lane.mode = mode;
  lane.shape = make_shape(config, num_ranks);
  lane.budget = make_budget(config, mode);
  return make_plan(lane, {&profile, kSms});
}

// Of batches of the config's size: flat rows as they are, flat rows reduced, experts' rows reduced,
// and flat rows that are read in place.
CombineGrid grid_of(const Plan& plan, int32_t layout, Sending sending) {
  const Shape& shape = plan.shape;
  return combine_grid(plan, {layout, shape.max_tokens, shape.max_top_k, shape.row_bytes,
                             shape.partial_row_bytes, sending});
}
std::vector<CombineGrid> grids_that_send(const Plan& plan) {
  return {grid_of(plan, hepLayoutFlat, Sending::kRows),
          grid_of(plan, hepLayoutFlat, Sending::kSums),
          grid_of(plan, hepLayoutExpertMajor, Sending::kSums)};
}
CombineGrid grid_in_place(const Plan& plan) { return grid_of(plan, hepLayoutFlat, Sending::kNone); }
std::vector<CombineGrid> all_grids(const Plan& plan) {
  std::vector<CombineGrid> grids = grids_that_send(plan);
  grids.push_back(grid_in_place(plan));
  return grids;
}

TEST_F(ConfigPlan, StaysWithinTheBudget) {
  for (int budget = 2; budget <= 256; ++budget) {
    hepConfig_t config = valid_config();
    config.sm_budget = budget;
    const Plan plan = plan_of(resolved_config(config), kRanks);
    EXPECT_GE(plan.routing_blocks, 1);
    EXPECT_LE(plan.routing_blocks, budget);
    EXPECT_GE(plan.dispatch_blocks, 1);
    EXPECT_LE(plan.dispatch_blocks, budget);
    EXPECT_LE(plan.combine_blocks, budget);
    for (const CombineGrid& grid : all_grids(plan)) {
      EXPECT_GE(grid.blocks, 2);
      EXPECT_LE(grid.blocks, plan.combine_blocks);
      EXPECT_LE(grid.first_half, grid.blocks);
    }
    EXPECT_EQ(grid_in_place(plan).first_half, 0);
  }
}

TEST_F(ConfigPlan, GivesEveryDestinationOfCombineEquallyManyBlocks) {
  for (int budget = 2; budget <= 64; ++budget) {
    for (const int ranks : {2, 3, 4, 8}) {
      hepConfig_t config = valid_config();
      config.num_experts = 24;
      config.sm_budget = budget;
      const Plan plan = plan_of(resolved_config(config, ranks), ranks);
      const auto expect_equal = [&](int blocks, int destinations) {
        if (blocks > destinations) {
          EXPECT_EQ(blocks % destinations, 0) << budget << " SMs, " << ranks << " ranks";
        }
      };
      for (const CombineGrid& grid : grids_that_send(plan))  // a rank's own rows stay in place
        expect_equal(grid.first_half, ranks - 1);
    }
  }
}

TEST_F(ConfigPlan, CombineLeavesBlocksThatItHasNoUseFor) {
  hepConfig_t config = valid_config();
  config.sm_budget = 128;
  const Plan plan = plan_of(resolved_config(config), kRanks);
  EXPECT_LT(plan.combine_blocks, 64);
  EXPECT_LT(grid_in_place(plan).blocks, grid_of(plan, hepLayoutExpertMajor, Sending::kSums).blocks);
}

// Flat rows that are converted pass the first half like those that are summed, this rank's own
// included.
TEST_F(ConfigPlan, FlatRowsThatAreConvertedHaveMoreBlocksThanThoseThatAreForwarded) {
  for (const int ranks : {2, 4, 8}) {
    hepConfig_t config = valid_config();
    config.num_experts = 24;
    config.sm_budget = 32;
    config.combine_blocks = 32;
    const Plan plan = plan_of(resolved_config(config, ranks), ranks);
    const CombineGrid converted = grid_of(plan, hepLayoutFlat, Sending::kSums);
    const CombineGrid forwarded = grid_of(plan, hepLayoutFlat, Sending::kRows);
    EXPECT_GT(converted.first_half, forwarded.first_half) << ranks;
    EXPECT_GE(converted.blocks, forwarded.blocks) << ranks;
  }
}

TEST_F(ConfigPlan, OneRankSendsNothing) {
  const hepConfig_t config = resolved_config(valid_config(), 1);
  EXPECT_EQ(grid_of(plan_of(config, 1), hepLayoutFlat, Sending::kRows).first_half, 0);
}

TEST_F(ConfigPlan, FollowsTheTuningFields) {
  hepConfig_t config = valid_config();
  config.routing_threads = 128;
  config.routing_blocks = 3;
  config.dispatch_blocks = 5;
  config.dispatch_stages = 7;
  config.combine_blocks = 9;
  config.combine_load_stages = 11;
  config.combine_store_stages = 3;
  const Plan plan = plan_of(resolved_config(config), kRanks);
  EXPECT_EQ(plan.routing_threads, 128);
  EXPECT_EQ(plan.routing_blocks, 3);
  for (const int layout : {hepLayoutFlat, hepLayoutExpertMajor}) {
    EXPECT_EQ(dispatch_blocks(plan, {layout, 1, 8, 1, 16, 0, false}), 5);
    EXPECT_EQ(dispatch_stages(plan, 5, 16, layout), 7);
  }
  for (const CombineGrid& grid : all_grids(plan)) EXPECT_EQ(grid.blocks, 9);
  EXPECT_EQ(plan.combine_load_stages, 11);
  EXPECT_EQ(plan.combine_store_stages, 3);
}

TEST_F(ConfigPlan, DispatchStagesFitInSharedMemory) {
  constexpr int64_t kSharedBytes = 227 * 1024;  // of a block, on compute capability 9.0
  const Plan plan = plan_of(resolved_config(valid_config()), kRanks);
  for (const int64_t row_bytes : {16, 4096, 8192, 14336, 16384, 32768, 65536}) {
    for (const int layout : {hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded}) {
      const int32_t stages = dispatch_stages(plan, plan.dispatch_blocks, row_bytes, layout);
      EXPECT_GE(stages, 2) << row_bytes;
      EXPECT_LT(stages * row_bytes, kSharedBytes) << row_bytes;
    }
  }
}

TEST_F(ConfigPlan, LowLatencyOperationsHaveBlocksOfTheirOwn) {
  hepConfig_t config = valid_config();
  config.sm_budget = 8;
  config.dispatch_blocks = 3;
  config.routing_blocks = 2;
  config.low_latency_blocks = 40;
  const hepConfig_t resolved = resolved_config(config);
  EXPECT_EQ(plan_of(resolved, kRanks).dispatch_blocks, 3);
  const Plan plan = plan_of(resolved, kRanks, hepModeLowLatency);
  EXPECT_EQ(plan.dispatch_blocks, 40);
  EXPECT_GT(plan.routing_blocks, 2);
  EXPECT_LE(plan.routing_blocks, 40);
  EXPECT_EQ(plan.combine_blocks, 40);
}

TEST_F(ConfigPlan, AllBlocksOfALowLatencyCombineSendBeforeTheyAdd) {
  for (const int ranks : {2, 3, 4, 8}) {
    hepConfig_t config = valid_config();
    config.num_experts = 24;
    for (int blocks = 2; blocks <= 64; ++blocks) {
      config.low_latency_blocks = blocks;
      const Plan plan = plan_of(resolved_config(config, ranks), ranks, hepModeLowLatency);
      for (const CombineGrid& grid : grids_that_send(plan)) {
        EXPECT_EQ(grid.blocks, blocks) << ranks << " ranks";
        EXPECT_EQ(grid.first_half, blocks) << ranks << " ranks";
      }
    }
  }
}

TEST_F(ConfigPlan, OperationsOfAllLanesTakeTheSumOfTheirLargestGrids) {
  hepConfig_t config = valid_config();
  config.routing_blocks = 12;
  config.dispatch_blocks = 16;
  config.combine_blocks = 4;
  config.lanes = 2;
  const auto sum = [&] { return blocks_of_all(make_lanes(resolved_config(config), kRanks), {}); };
  EXPECT_EQ(sum(), 2 * 16);
  config.low_latency_tokens = 64;
  config.low_latency_blocks = 32;
  EXPECT_EQ(sum(), 2 * 16 + 4 * 32);
  config.dispatch_blocks = 3;
  EXPECT_EQ(sum(), 2 * 12 + 4 * 32);
}

// What the header says of the defaults: two low-latency lanes find room together on 132 SMs.
TEST_F(ConfigPlan, ADefaultLowLatencyOperationTakesAtMost64Sms) {
  hepConfig_t config = valid_config();
  config.low_latency_tokens = 128;
  for (const int ranks : {1, 2, 8, 32}) {
    const hepConfig_t resolved = resolved_config(config, ranks);
    EXPECT_LE(most_blocks(plan_of(resolved, ranks, hepModeLowLatency)), 64);
  }
}

// Arguments of a call on a communicator of 4 ranks with top-8 and the default rows.
template <typename Args>
Args args_of(const hepConfig_t& config, int layout, int row_bytes) {
  Args args{};
  args.context.window_layout.shape = make_shape(resolved_config(config), kRanks);
  args.num_tokens = 128;
  args.top_k = 8;
  args.call.layout = layout;
  args.rows.row_bytes = row_bytes;
  return args;
}

constexpr int kLayouts[] = {hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded};

TEST_F(ConfigPlan, EveryDispatchFitsInSharedMemory) {
  hepConfig_t config = valid_config();
  for (const int stages : {0, 2, 7, 15}) {
    config.dispatch_stages = stages;
    const Plan plan = plan_of(resolved_config(config), kRanks);
    for (const int layout : kLayouts) {
      for (int row_bytes = 16; row_bytes <= 14336; row_bytes += 112) {
        PipelineArgs args = args_of<PipelineArgs>(config, layout, row_bytes);
        const Grid grid = plan_dispatch(plan, &args);
        EXPECT_LE(grid.shared_bytes, dispatch::kMaxDynamicBytes) << row_bytes;
        EXPECT_GE(args.plan.pipelines, 1);
        EXPECT_LE(args.plan.pipelines, dispatch::kPipelines);
        EXPECT_GE(args.plan.stages, 2) << row_bytes;
        EXPECT_GE(args.plan.rows_per_stage, 1);
        EXPECT_LE(args.plan.rows_per_stage,
                  layout == hepLayoutFlat ? dispatch::kMaxRowsPerStage : 1);
      }
    }
  }
}

TEST_F(ConfigPlan, SmallFlatRowsShareAStage) {
  const Plan plan = plan_of(resolved_config(valid_config()), kRanks);
  PipelineArgs args = args_of<PipelineArgs>(valid_config(), hepLayoutFlat, 1024);
  plan_dispatch(plan, &args);
  EXPECT_GT(args.plan.rows_per_stage, 1);
  EXPECT_GE(args.plan.stages, dispatch::kFewStages);
}

TEST_F(ConfigPlan, AnUpdateInTheSameLaunchLeavesRoomForChoices) {
  hepConfig_t config = valid_config();
  config.low_latency_tokens = 128;
  const Lane lane = make_lanes(resolved_config(config), kRanks).back();
  ASSERT_GT(lane.shape.choice_tokens, 0);
  for (const int layout : kLayouts) {
    UpdateArgs args = args_of<UpdateArgs>(config, layout, 14336);
    args.context.window_layout = lane.window_layout;
    const Grid grid = plan_update_and_dispatch(make_plan(lane, {}), &args);
    EXPECT_LE(grid.shared_bytes, fused::kMaxDynamicBytes);
    EXPECT_GE(grid.shared_bytes, static_cast<int>(assign_bytes(lane.shape)));
    EXPECT_GE(args.plan.stages, kFewestStages);
  }
}

TEST_F(ConfigPlan, ScalesComeWithTheirRowsWhereTheCopyEngineCanBringThem) {
  hepConfig_t config = valid_config();
  config.low_latency_tokens = 128;
  config.scale_bytes = 224;
  const Lane lane = make_lanes(resolved_config(config), kRanks).back();
  const auto stage_scale_bytes = [&](uintptr_t row_scales, int64_t stride) {
    UpdateArgs args = args_of<UpdateArgs>(config, hepLayoutFlat, 7168);
    args.context.window_layout = lane.window_layout;
    args.call.row_scales = reinterpret_cast<void*>(row_scales);
    args.call.row_scales_stride = stride;
    plan_update_and_dispatch(make_plan(lane, {}), &args);
    return args.plan.stage_scale_bytes;
  };
  EXPECT_EQ(stage_scale_bytes(4096, 0), 224);
  EXPECT_EQ(stage_scale_bytes(4096 + 4, 0), 0);
  EXPECT_EQ(stage_scale_bytes(4096, 128), 0);
  EXPECT_EQ(stage_scale_bytes(0, 0), 0);
}

TEST_F(ConfigPlan, EveryCombineFitsInSharedMemory) {
  hepConfig_t config = valid_config();
  const Plan plan = plan_of(resolved_config(config), kRanks);
  for (int row_bytes = 16; row_bytes <= 65536; row_bytes += 336) {
    CombineArgs args{};
    args.context.window_layout.shape = make_shape(resolved_config(config), kRanks);
    args.num_tokens = 4096;
    args.row_bytes = args.partial_row_bytes = row_bytes;
    const Grid grid = plan_combine(plan, &args);
    EXPECT_LE(grid.shared_bytes, kMaxDynamicSharedBytes) << row_bytes;
    EXPECT_GE(args.plan.load_stages, 2) << row_bytes;
    EXPECT_LT(args.plan.store_stages, args.plan.load_stages) << row_bytes;
    EXPECT_LE(args.plan.first_half_blocks, grid.blocks);
  }
}

// The plan of a combine of rows and partial sums of these sizes.
CombinePlan combine_plan_of(int row_bytes, int partial_row_bytes, Grid* grid) {
  const hepConfig_t config = resolved_config(valid_config());
  CombineArgs args{};
  args.context.window_layout.shape = make_shape(config, kRanks);
  args.num_tokens = 4096;
  args.row_bytes = row_bytes;
  args.partial_row_bytes = partial_row_bytes;
  *grid = plan_combine(plan_of(config, kRanks), &args);
  return args.plan;
}

TEST_F(ConfigPlan, SegmentsOfACombineCoverRowsOfEveryLength) {
  Grid grid;
  for (int row_bytes = 16; row_bytes <= 65536; row_bytes += 16) {
    for (const int partial_row_bytes : {row_bytes / 32 * 16, row_bytes, 2 * row_bytes}) {
      if (partial_row_bytes < 16 || partial_row_bytes > 65536) continue;
      const CombinePlan plan = combine_plan_of(row_bytes, partial_row_bytes, &grid);
      EXPECT_EQ(grid.threads, plan.pipelines * (1 + plan.reducers) * 32);
      EXPECT_LE(grid.threads, combine::kThreads);
      for (const int bytes : {plan.segment_bytes, plan.partial_segment_bytes}) {
        EXPECT_EQ(bytes % 512, 0) << row_bytes;  // whole registers of a warp
        EXPECT_LE(bytes, plan.reducers * combine::kSliceBytes) << row_bytes;
      }
    }
  }
}

// Of a whole expert-major combine of 4096 tokens a rank, or in low-latency mode of 128.
CombineSignals signals_of(int ranks, hepMode_t mode) {
  hepConfig_t config = valid_config();
  config.num_experts = 4 * ranks;
  config.low_latency_tokens = 128;
  const hepConfig_t resolved = resolved_config(config, ranks);
  CombineArgs args{};
  args.context.window_layout.shape = make_shape(resolved, ranks);
  args.num_tokens = mode == hepModeThroughput ? 4096 : 128;
  args.row_bytes = args.partial_row_bytes = 14336;
  args.call.layout = hepLayoutExpertMajor;
  args.outputs.location = kNotInWindow;
  plan_combine(plan_of(resolved, ranks, mode), &args);
  return count_signals(args);
}

// A signal takes 1.2 us of a pipeline (2 H200s).
TEST_F(ConfigPlan, SignalsTakeLessThan30MicrosecondsOfTheFirstHalfOfACombine) {
  for (int ranks = 2; ranks <= 72; ++ranks) {
    EXPECT_LT(signals_of(ranks, hepModeThroughput).of_pipeline * 1.2, 30) << ranks << " ranks";
    EXPECT_LT(signals_of(ranks, hepModeLowLatency).of_pipeline * 1.2, 5) << ranks << " ranks";
  }
}

TEST_F(ConfigPlan, WordsThatACombineSignalsDoNotGrowWithTheNumberOfRanks) {
  for (int ranks = 2; ranks <= 72; ++ranks) {
    EXPECT_LE(signals_of(ranks, hepModeThroughput).words, 2048) << ranks << " ranks";
    EXPECT_LE(signals_of(ranks, hepModeLowLatency).words, 128) << ranks << " ranks";
  }
}

TEST_F(ConfigPlan, ATaskOfACombineStaysWithinAChunkAndAWarp) {
  hepConfig_t config = valid_config();
  const Plan plan = plan_of(resolved_config(config), kRanks);
  for (const int layout : kLayouts) {
    for (int tokens = 0; tokens <= 4096; tokens += 31) {
      CombineArgs args{};
      args.context.window_layout.shape = make_shape(resolved_config(config), kRanks);
      args.num_tokens = tokens;
      args.row_bytes = args.partial_row_bytes = 14336;
      args.call.layout = layout;
      plan_combine(plan, &args);
      EXPECT_EQ(chunk_tokens(tokens, kRanks) % (1 << args.plan.task_shift), 0) << tokens;
      EXPECT_LE(args.context.shape().max_partials() << args.plan.task_shift, 32) << tokens;
    }
  }
}

TEST_F(ConfigPlan, ManyExpertsLeaveTheRoutingUpdateFewerWarps) {
  hepConfig_t config = valid_config();
  const Grid few = plan_route(plan_of(resolved_config(config), kRanks),
                              make_shape(resolved_config(config), kRanks));
  EXPECT_EQ(few.threads, 1024);
  config.num_experts = 4096;
  const Grid many = plan_route(plan_of(resolved_config(config), kRanks),
                               make_shape(resolved_config(config), kRanks));
  EXPECT_LT(many.threads, few.threads);
  EXPECT_GE(many.threads, 2 * 32);
  EXPECT_LE(many.shared_bytes, kMaxDynamicSharedBytes);
}

// ----------------------------------------------------------------------------------- profile

TEST(Profile, IsThatOfTheDeviceFamily) {
  EXPECT_EQ(&profile_of(9), &kH200);
  EXPECT_EQ(&profile_of(10), &kBlackwell);
  EXPECT_EQ(&profile_of(12), &kH200);  // whose code for 9.0 is compiled for it
  EXPECT_TRUE(kH200.measured);
  EXPECT_FALSE(kBlackwell.measured);
}

TEST_F(ConfigPlan, FollowsTheProfile) {
  Profile fast_links = kH200;
  fast_links.link_rate *= 2;
  fast_links.flat_bytes_in_flight *= 2;
  hepConfig_t config = valid_config();
  config.sm_budget = 128;
  const hepConfig_t resolved = resolved_config(config);
  const Plan slow = plan_of(resolved, kRanks);
  const Plan fast = plan_of(resolved, kRanks, hepModeThroughput, fast_links);
  EXPECT_GT(grid_of(fast, hepLayoutFlat, Sending::kRows).first_half,
            grid_of(slow, hepLayoutFlat, Sending::kRows).first_half);
  EXPECT_GT(dispatch_stages(fast, 16, 4096, hepLayoutFlat),
            dispatch_stages(slow, 16, 4096, hepLayoutFlat));
}

// --------------------------------------------------------------------------------- workspace

TEST_F(ConfigWorkspace, ItemsAddUpToTheTotal) {
  for (int ranks : {1, 4, 32}) {
    hepConfig_t config = valid_config();
    config.heap_bytes = 1 << 20;
    const hepWorkspace_t workspace = make_workspace(resolved_config(config, ranks), ranks);
    EXPECT_EQ(workspace.total_bytes, workspace.token_bytes + workspace.partial_bytes +
                                         workspace.record_bytes + workspace.signal_bytes +
                                         workspace.heap_bytes);
    config.lanes = 3;
    config.low_latency_tokens = 128;
    const hepWorkspace_t several = make_workspace(resolved_config(config, ranks), ranks);
    EXPECT_EQ(several.total_bytes, several.token_bytes + several.partial_bytes +
                                       several.record_bytes + several.signal_bytes +
                                       several.heap_bytes + several.low_latency_bytes);
  }
}

TEST_F(ConfigWorkspace, OneDomainHasTheWindowThatItHasWithoutDomains) {
  hepConfig_t config = valid_config();
  config.domain_size = kRanks;
  config.low_latency_tokens = 128;
  for (const Lane& lane : make_lanes(resolved_config(config), kRanks)) {
    EXPECT_TRUE(lane.network_layout.empty());
    EXPECT_EQ(lane.window_layout.slots_stride, WindowLayout::make(lane.shape).slots_stride);
    EXPECT_EQ(lane.network_layout.end, WindowLayout::make(lane.shape).heap);
    EXPECT_EQ(lane.routing_bytes(), RoutingLayout::make(lane.shape).total);
  }
  EXPECT_EQ(make_workspace(resolved_config(config), kRanks).network_bytes, 0u);
}

TEST_F(ConfigWorkspace, SeveralDomainsShareAWindowOfADomainEach) {
  hepConfig_t config = valid_config();
  config.domain_size = 2;
  config.lanes = 2;
  config.low_latency_tokens = 128;
  const std::vector<Lane> lanes = make_lanes(resolved_config(config), kRanks);
  for (const Lane& lane : lanes) {
    EXPECT_EQ(lane.window_layout.shape.num_ranks, 2);
    EXPECT_EQ(lane.window_layout.shape.num_local_experts(), lane.shape.num_local_experts());
    EXPECT_EQ(lane.window_layout.shape.max_partials(), 2);
    EXPECT_EQ(lane.window_layout.shape.choice_tokens, 0);
  }
  for (size_t i = 0; i + 1 < lanes.size(); ++i)
    EXPECT_EQ(lanes[i].offset + lanes[i].network_layout.end, lanes[i + 1].offset);
  const hepWorkspace_t workspace = make_workspace(resolved_config(config), kRanks);
  EXPECT_GE(workspace.network_bytes, 2 * 3 * (uint64_t{32} * 8 * 7168 * 2));  // three rings of rows
  EXPECT_EQ(workspace.total_bytes, workspace.token_bytes + workspace.partial_bytes +
                                       workspace.record_bytes + workspace.signal_bytes +
                                       workspace.heap_bytes + workspace.low_latency_bytes +
                                       workspace.network_bytes);
}

TEST_F(ConfigWorkspace, EveryLaneTakesAsMuchAsTheFirst) {
  hepConfig_t config = valid_config();
  config.heap_bytes = 1 << 20;
  const hepWorkspace_t one = make_workspace(resolved_config(config), kRanks);
  EXPECT_EQ(one.low_latency_bytes, 0u);
  EXPECT_EQ(one.low_latency_routing_bytes, 0u);
  config.lanes = 3;
  const hepWorkspace_t three = make_workspace(resolved_config(config), kRanks);
  EXPECT_EQ(three.token_bytes, 3 * one.token_bytes);
  EXPECT_EQ(three.partial_bytes, 3 * one.partial_bytes);
  EXPECT_EQ(three.record_bytes, 3 * one.record_bytes);
  EXPECT_EQ(three.signal_bytes, 3 * one.signal_bytes);
  const uint64_t once = kMaxRegistrations * kRanks * sizeof(void*);  // where registered memory is
  EXPECT_EQ(three.scratch_bytes - once, 3 * (one.scratch_bytes - once));
  EXPECT_EQ(three.heap_bytes, one.heap_bytes);
  EXPECT_EQ(three.routing_bytes, one.routing_bytes);
}

TEST_F(ConfigWorkspace, FourLowLatencyLanesAreSizedForTheirTokens) {
  hepConfig_t small = valid_config();
  small.max_tokens = 128;
  const hepWorkspace_t of_128 = make_workspace(resolved_config(small), kRanks);
  hepConfig_t config = valid_config();
  config.low_latency_tokens = 128;
  const hepWorkspace_t workspace = make_workspace(resolved_config(config), kRanks);
  // Operations take turns with two sets of tokens and of partial sums. In addition each rank has
  // room for the choices of all: a header of four words of 8 bytes, for each token one, and for
  // each selection half a word and one for its weight, for each of two updates, in whole cache
  // lines.
  const uint64_t top_k = resolved_config(small).max_top_k;
  const uint64_t words = 4 + 128 * (1 + (top_k + 1) / 2 + top_k);
  const uint64_t choices = 2 * kRanks * ((words * 8 + 255) / 256 * 256);
  const uint64_t second_set = of_128.token_bytes + of_128.partial_bytes;
  EXPECT_EQ(workspace.low_latency_bytes,
            4 * (of_128.total_bytes - of_128.heap_bytes + second_set + choices));
  EXPECT_EQ(workspace.low_latency_routing_bytes, of_128.routing_bytes);
  const hepWorkspace_t without = make_workspace(resolved_config(valid_config()), kRanks);
  EXPECT_EQ(workspace.routing_bytes, without.routing_bytes);
  EXPECT_EQ(workspace.token_bytes, without.token_bytes);
}

TEST_F(ConfigWorkspace, ChoicesThatABlockCannotHoldHaveNoRoom) {
  constexpr int kManyRanks = 64;  // of 512 tokens with 8 selections of 2 bytes each: 512 KiB
  hepConfig_t small = valid_config();
  small.num_experts = 256;
  small.max_top_k = 8;
  small.max_tokens = 512;
  const hepWorkspace_t of_512 = make_workspace(resolved_config(small, kManyRanks), kManyRanks);
  hepConfig_t config = small;
  config.low_latency_tokens = 512;
  const hepWorkspace_t workspace = make_workspace(resolved_config(config, kManyRanks), kManyRanks);
  const uint64_t second_set = of_512.token_bytes + of_512.partial_bytes;
  EXPECT_EQ(workspace.low_latency_bytes, 4 * (of_512.total_bytes - of_512.heap_bytes + second_set));
}

TEST_F(ConfigWorkspace, ThereIsRoomForChoicesAmongAsManyRanksAsTheHeaderSays) {
  hepConfig_t config = valid_config();
  config.num_experts = 19 * 20;
  config.low_latency_tokens = 512;
  const auto has_room = [&config](int num_ranks) {
    return make_lanes(resolved_config(config, num_ranks), num_ranks).back().shape.choice_tokens > 0;
  };
  EXPECT_TRUE(has_room(19));
  EXPECT_FALSE(has_room(20));
}

TEST_F(ConfigWorkspace, LanesLieOneAfterTheOtherAndTheHeapBehindThemAll) {
  hepConfig_t config = valid_config();
  config.heap_bytes = 1 << 20;
  config.lanes = 2;
  config.low_latency_tokens = 7;
  const std::vector<Lane> lanes = make_lanes(resolved_config(config), kRanks);
  ASSERT_EQ(lanes.size(), 6u);
  uint64_t end = 0;
  for (const Lane& lane : lanes) {
    EXPECT_EQ(lane.offset, end);
    EXPECT_EQ(lane.offset % kSectionAlignment, 0u);
    EXPECT_EQ(lane.shape.max_tokens, lane.mode == hepModeLowLatency ? 7 : config.max_tokens);
    end += WindowLayout::make(lane.shape).heap;
  }
  for (const Lane& lane : lanes) {
    EXPECT_EQ(lane.offset + lane.window_layout.heap, end);
    EXPECT_EQ(lane.offset + lane.window_layout.total, window_bytes(lanes));
  }
}

TEST_F(ConfigWorkspace, EachItemHoldsWhatItsDocumentationSays) {
  hepConfig_t config = valid_config();
  config.heap_bytes = 1000;
  const hepWorkspace_t workspace = make_workspace(resolved_config(config), kRanks);
  const uint64_t rounding = 2 * 256, tokens = 4096, row = 14336;
  EXPECT_GE(workspace.token_bytes, tokens * row + tokens * 8 * 4);
  EXPECT_LE(workspace.token_bytes, tokens * row + tokens * 8 * 4 + rounding);
  EXPECT_GE(workspace.partial_bytes, tokens * 4 * row);  // min(K, R) is 4
  EXPECT_LE(workspace.partial_bytes, tokens * 4 * row + tokens * 8 * 4 + rounding);
  EXPECT_GE(workspace.heap_bytes, 1000u);
  EXPECT_LE(workspace.heap_bytes, 1000u + rounding);
  EXPECT_GT(workspace.record_bytes, 0u);
  EXPECT_GT(workspace.signal_bytes, 0u);
  EXPECT_GT(workspace.scratch_bytes, 0u);
  // Rows, selections and weights of all that may arrive.
  EXPECT_GE(workspace.routing_bytes, kRanks * tokens * (16 + 8 * 8 + 8 * 4));
}

TEST_F(ConfigWorkspace, HoldsTheLargestRowsAndSumsThatTheTypesCanHave) {
  const uint64_t tokens = 4096, hidden = 7168, partials = 4, gradients = tokens * 8 * 4;
  const uint64_t weights = tokens * 8 * 4, rounding = 3 * 256;
  const struct {
    const char* what;
    int32_t type, combine_type, partial_type, scale_bytes;
    uint64_t row, scales, partial_row;
  } table[] = {
      {"BF16", 0, 0, 0, 0, hidden * 2, 0, hidden * 2},
      {"FP8, BF16 backward", hepTypeFloat8E4M3, 0, 0, 224, hidden * 2, 224, hidden * 2},
      {"FP32 sums", 0, 0, hepTypeFloat32, 0, hidden * 2, 0, hidden * 4},
      {"FP32", hepTypeFloat32, 0, 0, 3, hidden * 4, 16, hidden * 2},
      {"FP8, FP32 backward", hepTypeFloat8E5M2, hepTypeFloat32, hepTypeFloat32, 0, hidden * 4, 0,
       hidden * 4},
  };
  for (const auto& entry : table) {
    SCOPED_TRACE(entry.what);
    hepConfig_t config = valid_config();
    config.type = entry.type;
    config.combine_type = entry.combine_type;
    config.partial_type = entry.partial_type;
    config.scale_bytes = entry.scale_bytes;
    const hepWorkspace_t workspace = make_workspace(resolved_config(config), kRanks);
    const uint64_t token_bytes = tokens * (entry.row + entry.scales) + weights;
    EXPECT_GE(workspace.token_bytes, token_bytes);
    EXPECT_LE(workspace.token_bytes, token_bytes + rounding);
    EXPECT_GE(workspace.partial_bytes, tokens * partials * entry.partial_row + gradients);
    EXPECT_LE(workspace.partial_bytes,
              tokens * partials * entry.partial_row + gradients + rounding);
  }
}

TEST_F(ConfigWorkspace, MakesNoRoomForRowsOfMoreThan64KiB) {
  hepConfig_t config = valid_config();
  config.type = hepTypeFloat8E4M3;
  config.hidden = 65536;  // BF16 rows would have 128 KiB
  EXPECT_EQ(make_shape(resolved_config(config), kRanks).row_bytes, 65536);
}

TEST_F(ConfigWorkspace, IsKnownForTheLargestConfig) {
  hepConfig_t config = valid_config();
  config.max_tokens = 65536;
  config.hidden = 32768;
  config.num_experts = 72 * 56;
  config.max_top_k = 32;
  const hepWorkspace_t workspace = make_workspace(resolved_config(config, 72), 72);
  EXPECT_GT(workspace.partial_bytes, uint64_t{65536} * 32 * 65536 - 1);
  EXPECT_LT(workspace.total_bytes, uint64_t{1} << 38);
}

}  // namespace
}  // namespace hep
