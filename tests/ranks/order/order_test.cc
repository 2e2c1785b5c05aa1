// SPDX-License-Identifier: Apache-2.0
// The order of sums and places is fixed: results repeat bit for bit, whatever the launch, and
// routings in flight do not mix.
#include <algorithm>
#include <string>
#include <vector>

#include "harness/device.h"
#include "ranks/job.h"
#include "ranks/support.h"

namespace {

using harness::world;
using Bytes = std::vector<unsigned char>;

// Many ranks share the cores of one machine; there, fewer tokens show the same.
int max_tokens() { return world().num_ranks() > 8 ? 40 : 200; }

hepConfig_t order_config() {
  hepConfig_t config = small_config();
  config.max_tokens = max_tokens();
  config.hidden = 520;
  config.max_top_k = 8;
  config.heap_bytes = 16 << 20;
  return config;
}

std::vector<int64_t> uneven_tokens() {
  std::vector<int64_t> tokens;
  for (int rank = 0; rank < world().num_ranks(); ++rank) {
    tokens.push_back(max_tokens() * (5 - rank % 5) / 5);
  }
  return tokens;
}

// Both layouts, all weight modes.
Job full_job(const hepConfig_t& config) {
  Random random(options().seed + 11);
  JobBuilder builder(world().num_ranks(), config.num_experts, config.hidden, random);
  const int routing = builder.add_routing(16);
  const int update = builder.add_update(routing, config.max_top_k, hepIndexInt64, uneven_tokens());
  for (const hepLayout_t layout : {hepLayoutFlat, hepLayoutExpertMajor}) {
    const int dispatch = builder.add_dispatch(update, layout, true);
    for (const hepWeightMode_t mode : {hepWeightsNone, hepWeightsDispatched, hepWeightsRow})
      builder.add_combine(update, layout, mode, dispatch);
  }
  builder.combine(builder.add_combine(update, hepLayoutFlat, hepWeightsNone))
      .y_memory.assign(world().num_ranks(), kHeapMemory);
  return builder.finish("full job");
}

// Runs the job on a communicator of its own and returns what each local rank got.
std::vector<Bytes> outputs_of(const hepConfig_t& config, const Job& job) {
  std::vector<Bytes> outputs(world().num_ranks());
  run_ranks(config, [&](Rank& self) {
    JobRun run(job, self);
    run.complete();
    outputs[self.rank] = run.outputs();
  });
  return outputs;
}

TEST(Order, TwoRunsGiveTheSameBytes) {
  const hepConfig_t config = order_config();
  const Job job = full_job(config);
  EXPECT_EQ(outputs_of(config, job), outputs_of(config, job));
}

TEST(Order, ResultsDoNotDependOnTheLaunch) {
  const hepConfig_t config = order_config();
  const Job job = full_job(config);
  const std::vector<Bytes> expected = outputs_of(config, job);
  for (const int blocks : {2, 3, 8, 12}) {
    hepConfig_t other = config;
    other.sm_budget = other.dispatch_blocks = other.combine_blocks = blocks;
    EXPECT_EQ(outputs_of(other, job), expected) << blocks << " blocks";
  }
  hepConfig_t tuned = config;
  tuned.routing_threads = 64;
  tuned.routing_blocks = 3;
  tuned.dispatch_stages = 3;
  tuned.dispatch_blocks = 5;
  tuned.combine_load_stages = 2;
  tuned.combine_store_stages = 3;
  tuned.combine_blocks = 7;
  EXPECT_EQ(outputs_of(tuned, job), expected) << "tuned";
}

// On a lane of each mode. Blocks wait for each other, so those of all ranks of a device must fit
// on it together.
TEST(Order, EveryBudgetOfADeviceGivesTheOraclesBytes) {
  if (world().backend() != hepBackendCuda) GTEST_SKIP() << "the host backend occupies no SMs";
  hepConfig_t config = order_config();
  config.low_latency_tokens = 40;
  Random random(options().seed + 15);
  JobBuilder builder(world().num_ranks(), config.num_experts, config.hidden, random);
  for (const hepMode_t mode : {hepModeThroughput, hepModeLowLatency}) {
    const std::vector<int64_t> tokens(world().num_ranks(), 40);
    const int update = builder.add_update(builder.add_routing(16, mode), 8, hepIndexInt32, tokens);
    for (const hepLayout_t layout : {hepLayoutFlat, hepLayoutExpertPadded}) {
      const int dispatch = builder.add_dispatch(update, layout, true);
      builder.add_combine(update, layout, hepWeightsDispatched, dispatch);
      builder.add_combine(update, layout, hepWeightsNone);
    }
  }
  const Job job = builder.finish("any budget");
  const int devices = harness::World::num_devices();
  const int ranks_per_device = (world().num_ranks() + devices - 1) / devices;
  const int most = harness::device::num_sms() / ranks_per_device;
  for (int budget = 2;; budget = std::min(budget + budget / 2, most)) {
    SCOPED_TRACE(std::to_string(budget) + " blocks");
    config.sm_budget = config.dispatch_blocks = config.combine_blocks = budget;
    config.low_latency_blocks = budget;
    run_job(config, job);
    if (budget == most) break;
  }
}

TEST(Order, RoutingsInFlightDoNotMix) {
  const hepConfig_t config = order_config();
  Random random(options().seed + 12);
  JobBuilder builder(world().num_ranks(), config.num_experts, config.hidden, random);
  const int a = builder.add_routing(8), b = builder.add_routing(64);
  const int update_a = builder.add_update(a, 8, hepIndexInt32, uneven_tokens());
  const int update_b = builder.add_update(
      b, 3, hepIndexInt64, std::vector<int64_t>(world().num_ranks(), max_tokens() / 2 - 3));
  const int dispatch_a = builder.add_dispatch(update_a, hepLayoutExpertMajor, true);
  const int dispatch_b = builder.add_dispatch(update_b, hepLayoutFlat, true);
  builder.add_combine(update_b, hepLayoutFlat, hepWeightsDispatched, dispatch_b);
  builder.add_combine(update_a, hepLayoutExpertMajor, hepWeightsDispatched, dispatch_a);
  outputs_of(config, builder.finish("two routings in flight"));
}

TEST(Order, RoutingsServeManyOperationsWithoutAnotherUpdate) {
  const hepConfig_t config = order_config();
  Random random(options().seed + 13);
  JobBuilder builder(world().num_ranks(), config.num_experts, config.hidden, random);
  const int update = builder.add_update(builder.add_routing(1), 5, hepIndexInt32, uneven_tokens());
  for (int round = 0; round < 5; ++round) {
    builder.add_combine(update, hepLayoutExpertMajor, hepWeightsRow);
    builder.add_dispatch(update, hepLayoutFlat, round % 2 == 0);
    builder.add_dispatch(update, hepLayoutExpertMajor, round % 2 == 1);
    // In the heap of all ranks, of some, of none.
    Combine& flat = builder.combine(builder.add_combine(update, hepLayoutFlat, hepWeightsNone));
    for (int rank = 0; rank < world().num_ranks(); ++rank)
      flat.y_memory[rank] = round < 3 && rank % (round + 1) == 0 ? kHeapMemory : kAnyMemory;
  }
  outputs_of(config, builder.finish("many operations, one update"));
}

TEST(Order, WeightsOfTheLatestDispatchThatCarriedThemCount) {
  const hepConfig_t config = order_config();
  Random random(options().seed + 14);
  JobBuilder builder(world().num_ranks(), config.num_experts, config.hidden, random);
  const int update = builder.add_update(builder.add_routing(1), 4, hepIndexInt32, uneven_tokens());
  builder.add_dispatch(update, hepLayoutFlat, true);
  const int latest = builder.add_dispatch(update, hepLayoutExpertMajor, true);
  builder.add_dispatch(update, hepLayoutFlat, false);
  builder.add_combine(update, hepLayoutFlat, hepWeightsDispatched, latest);
  builder.add_combine(update, hepLayoutExpertMajor, hepWeightsDispatched, latest);
  outputs_of(config, builder.finish("two dispatches with weights, one without"));
}

}  // namespace
