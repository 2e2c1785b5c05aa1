// SPDX-License-Identifier: Apache-2.0
// A routing in memory of the caller's, and of fewer tokens and selections, serves as any other.
#include <string>
#include <vector>

#include "harness/device.h"
#include "ranks/job.h"
#include "ranks/spoilt_batch.h"
#include "ranks/support.h"

namespace {

using harness::world;

constexpr int kTokens = 20;
constexpr int kTopK = 3;

hepConfig_t memory_config() {
  hepConfig_t config = small_config();
  config.low_latency_tokens = 2 * kTokens;
  return config;
}

uint64_t bytes_of(Rank& self, const hepRoutingConfig_t* config) {
  uint64_t bytes = 0;
  EXPECT_HEP(hepRoutingMemoryBytes(self.comm, config, &bytes));
  return bytes;
}

// Memory for a routing of the batch's sizes.
struct RoutingMemory {
  explicit RoutingMemory(Rank& self) {
    config.max_tokens = Batch::kTokens;
    config.max_top_k = Batch::kTopK;
    config.memory_bytes = bytes_of(self, &config);
    buffer = harness::Buffer(world().backend(), config.memory_bytes);
    config.memory = buffer.data();
  }
  harness::Buffer buffer;
  hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
};

// Two routings with memory of their own take turns on a lane with one of the library's.
Job job_of(const hepConfig_t& config, hepMode_t mode, hepLayout_t layout) {
  Random random(options().seed + 110 + layout);
  JobBuilder builder(world().num_ranks(), config, random);
  for (const bool own_memory : {true, false, true}) {
    RoutingPlace& place = builder.routing(builder.add_routing(8, mode));
    place.own_memory = own_memory;
    place.max_tokens = kTokens;
    place.max_top_k = kTopK;
  }
  for (int round = 0; round < 2; ++round)
    for (int routing = 0; routing < 3; ++routing) {
      const int update =
          builder.add_update(routing, kTopK, round == 0 ? hepIndexInt32 : hepIndexMap,
                             std::vector<int64_t>(world().num_ranks(), kTokens - 2 * round));
      builder.update(update).query = true;
      const int dispatch = builder.add_dispatch(update, layout, true);
      Combine& combine =
          builder.combine(builder.add_combine(update, layout, hepWeightsDispatched, dispatch));
      combine.has_gradients = true;
      if (mode != hepModeLowLatency) continue;
      builder.fold_update(dispatch);
      builder.dispatch(dispatch).halves.split = combine.halves.split = round == 1;
    }
  return builder.finish("routing memory, mode " + std::to_string(mode) + ", layout " +
                        std::to_string(layout));
}

TEST(RoutingMemory, OfTheCallersServesAllOperations) {
  const hepConfig_t config = memory_config();
  std::vector<Job> jobs;
  for (const hepMode_t mode : {hepModeThroughput, hepModeLowLatency})
    for (const hepLayout_t layout : {hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded})
      jobs.push_back(job_of(config, mode, layout));
  run_ranks(config, [&](Rank& self) {
    for (const Job& job : jobs) JobRun(job, self).complete();
  });
}

TEST(RoutingMemory, IsAsLargeAsItsLimitsNeed) {
  const hepConfig_t config = memory_config();
  hepWorkspace_t workspace = HEP_WORKSPACE_INITIALIZER;
  ASSERT_HEP(hepWorkspaceSize(&config, world().num_ranks(), &workspace));
  run_ranks(config, [&](Rank& self) {
    hepRoutingConfig_t place = HEP_ROUTING_CONFIG_INITIALIZER;
    EXPECT_EQ(bytes_of(self, nullptr), workspace.routing_bytes);
    place.mode = hepModeLowLatency;
    EXPECT_EQ(bytes_of(self, &place), workspace.low_latency_routing_bytes);
    place.max_tokens = kTokens;
    const uint64_t of_few_tokens = bytes_of(self, &place);
    EXPECT_LT(of_few_tokens, workspace.low_latency_routing_bytes);
    place.max_top_k = 1;
    EXPECT_LT(bytes_of(self, &place), of_few_tokens);
  });
}

TEST(RoutingMemory, MayBeTakenWhileAStreamIsCaptured) {
  if (world().backend() != hepBackendCuda) GTEST_SKIP() << "the host backend has no graphs";
  const hepConfig_t config = memory_config();
  run_ranks(config, [&](Rank& self) {
    Batch batch(self, config);
    const RoutingMemory memory(self);
    RoutingHandle routing;
    harness::Graph graph;
    self.barrier();
    graph.begin(self.stream);
    EXPECT_HEP(hepRoutingCreate(routing.out(), self.comm, &memory.config));
    graph.end(self.stream);
    EXPECT_EQ(graph.num_nodes(), 0u);
    EXPECT_HEP(hepRoutingUpdate(routing.get(), &batch.choice, self.stream.get()));
    self.barrier();
    EXPECT_HEP(hepDispatch(routing.get(), &batch.dispatch, self.stream.get()));
    self.stream.synchronize();
    hepResult_t error = hepErrorInternal;
    EXPECT_HEP(hepCommGetAsyncError(self.comm, &error));
    EXPECT_EQ(error, hepSuccess) << hepGetLastError();
    self.barrier();
  });
}

// What an update has left in the memory is not taken for one of the routing that has it now.
TEST(RoutingMemory, ForgetsTheRoutingThatHadItBefore) {
  if (world().backend() != hepBackendCuda) GTEST_SKIP() << "the host backend has no graphs";
  const hepConfig_t config = memory_config();
  run_ranks(config, [&](Rank& self) {
    Batch batch(self, config);
    const RoutingMemory memory(self);
    self.barrier();
    {
      RoutingHandle before;
      ASSERT_HEP(hepRoutingCreate(before.out(), self.comm, &memory.config));
      ASSERT_HEP(hepRoutingUpdate(before.get(), &batch.choice, self.stream.get()));
      self.stream.synchronize();
    }
    RoutingHandle routing;
    ASSERT_HEP(hepRoutingCreate(routing.out(), self.comm, &memory.config));
    harness::Graph never_launched;
    never_launched.begin(self.stream);
    EXPECT_HEP(hepRoutingUpdate(routing.get(), &batch.choice, self.stream.get()));
    never_launched.end(self.stream);
    self.barrier();
    hepDispatch(routing.get(), &batch.dispatch, self.stream.get());
    self.stream.synchronize();
    hepResult_t error = hepSuccess;
    EXPECT_HEP(hepCommGetAsyncError(self.comm, &error));
    EXPECT_EQ(error, hepErrorInvalidUsage);
    expect_mentions(hepGetLastError(), {"no update of its routing was executed"});
    self.barrier();
  });
}

}  // namespace
