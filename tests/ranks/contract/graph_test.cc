// SPDX-License-Identifier: Apache-2.0
// Operations can be captured once and replayed with other contents.
#include <memory>
#include <string>
#include <vector>

#include "ranks/job.h"
#include "ranks/support.h"

namespace {

using harness::world;

constexpr int kReplays = 100;
constexpr int kTokens = 96;
constexpr int kTopK = 4;

hepConfig_t graph_config() {
  hepConfig_t config = small_config();
  config.max_tokens = kTokens;
  config.heap_bytes = 16 << 20;
  return config;
}

// The same sizes for every seed: whatever the routing, there is room for all rows.
Job job_of(const hepConfig_t& config, int replay) {
  Random random(options().seed + 100 + replay);
  const int num_ranks = world().num_ranks();
  const int64_t most_rows = int64_t{num_ranks} * kTokens * kTopK + config.num_experts * 16;
  JobBuilder builder(num_ranks, config.num_experts, config.hidden, random);
  RoutingPattern pattern;
  pattern.absent_percent = replay % 3 == 0 ? 50 : 5;
  const int update = builder.add_update(builder.add_routing(16), kTopK, hepIndexInt32,
                                        std::vector<int64_t>(num_ranks, kTokens), pattern);
  for (const hepLayout_t layout : {hepLayoutFlat, hepLayoutExpertMajor}) {
    Dispatch& dispatch = builder.dispatch(builder.add_dispatch(update, layout, true));
    dispatch.capacity.assign(num_ranks, most_rows);
    if (layout == hepLayoutFlat) dispatch.gather_capacity.assign(num_ranks, most_rows);
    dispatch.x_memory.assign(num_ranks, layout == hepLayoutExpertMajor ? kHeapMemory : kAnyMemory);
  }
  for (int rank = 0; rank < num_ranks; rank += 2) builder.give_dense_weights(1, rank);
  Combine& weighted =
      builder.combine(builder.add_combine(update, hepLayoutExpertMajor, hepWeightsDispatched, 1));
  weighted.capacity.assign(num_ranks, most_rows);
  weighted.has_gradients = true;
  weighted.dense_gradients.assign(num_ranks, 1);
  Combine& in_place = builder.combine(builder.add_combine(update, hepLayoutFlat, hepWeightsNone));
  in_place.capacity.assign(num_ranks, most_rows);
  in_place.y_memory.assign(num_ranks, kHeapMemory);
  return builder.finish("replay " + std::to_string(replay));
}

class Graph : public testing::Test {
 protected:
  void SetUp() override {
    if (world().backend() != hepBackendCuda) GTEST_SKIP() << "the host backend has no graphs";
    if (world().shares_devices())
      GTEST_SKIP()
          << "CUDA does not promise that graphs of ranks on one device run at the same time";
  }
};

TEST_F(Graph, ReplaysWithOtherContentsGiveTheOraclesBytes) {
  const hepConfig_t config = graph_config();
  std::vector<Job> jobs;
  for (int replay = 0; replay < kReplays; ++replay) jobs.push_back(job_of(config, replay));
  run_ranks(config, [&](Rank& self) {
    harness::Graph graph;
    JobRun run(jobs[0], self);
    graph.begin(self.stream);
    const bool issued = run.issue();
    graph.end(self.stream);
    ASSERT_TRUE(issued);
    for (const Job& job : jobs) {
      run.load(job);
      self.barrier();
      graph.launch(self.stream);
      self.stream.synchronize();
      run.verify();
    }
  });
}

TEST_F(Graph, ReplaysMixWithEagerOperations) {
  const hepConfig_t config = graph_config();
  const Job first = job_of(config, 1), second = job_of(config, 2);
  run_ranks(config, [&](Rank& self) {
    harness::Graph graph;
    JobRun replayed(first, self), eager(second, self);
    graph.begin(self.stream);
    const bool issued = replayed.issue();
    graph.end(self.stream);
    ASSERT_TRUE(issued);
    for (int round = 0; round < 3; ++round) {
      replayed.load(first);
      eager.load(second);
      self.barrier();
      graph.launch(self.stream);
      ASSERT_TRUE(eager.issue());
      self.stream.synchronize();
      replayed.verify();
      eager.verify();
    }
  });
}

// Contents of low-latency batches; more replays take them in turn.
constexpr int kContents = 50;

// Two batches on two lanes, each a dispatch with an update and a combine, whole or in halves, and
// then under way at once. Their tokens are as many in all replays, but some are idle.
Job low_latency_job_of(const hepConfig_t& config, bool in_halves, int replay) {
  Random random(options().seed + 1000 + replay);
  const int num_ranks = world().num_ranks();
  const int64_t most_rows = int64_t{num_ranks} * kTokens * kTopK + config.num_experts * 16;
  JobBuilder builder(num_ranks, config.num_experts, config.hidden, random);
  RoutingPattern pattern;
  pattern.idle_tail = true;
  int dispatches[2];
  for (const int lane : {0, 3}) {
    const int routing = builder.add_routing(16, hepModeLowLatency, lane);
    const int update = builder.add_update(routing, kTopK, hepIndexInt64,
                                          std::vector<int64_t>(num_ranks, kTokens - lane), pattern);
    const int index = builder.add_dispatch(update, hepLayoutExpertMajor, true);
    dispatches[lane != 0] = index;
    Dispatch& dispatch = builder.dispatch(index);
    dispatch.capacity.assign(num_ranks, most_rows);
    dispatch.x_memory.assign(num_ranks, lane != 0 ? kHeapMemory : kAnyMemory);
    dispatch.halves = {in_halves, 4};
    builder.fold_update(index);
  }
  for (const int index : dispatches) {
    Combine& combine = builder.combine(builder.add_combine(
        builder.dispatch(index).update, hepLayoutExpertMajor, hepWeightsDispatched, index));
    combine.capacity.assign(num_ranks, most_rows);
    combine.halves = {in_halves, 4};
  }
  return builder.finish("low latency, replay " + std::to_string(replay));
}

// Captures the job's calls in one graph, or in a new one wherever second halves follow first ones.
void replay_low_latency(bool in_halves, bool in_one_graph) {
  hepConfig_t config = graph_config();
  config.low_latency_tokens = kTokens;
  config.low_latency_blocks = 8;
  std::vector<Job> jobs;
  for (int replay = 0; replay < kContents; ++replay)
    jobs.push_back(low_latency_job_of(config, in_halves, replay));
  run_ranks(config, [&](Rank& self) {
    std::vector<std::unique_ptr<harness::Graph>> graphs;
    JobRun run(jobs[0], self);
    bool issued = true;
    const std::vector<Call>& order = jobs[0].order;
    for (size_t i = 0; i < order.size(); ++i) {
      const bool turns = i > 0 && order[i].step != order[i - 1].step;
      if (i == 0 || (turns && !in_one_graph)) {
        if (i > 0) graphs.back()->end(self.stream);
        graphs.push_back(std::make_unique<harness::Graph>());
        graphs.back()->begin(self.stream);
      }
      issued &= run.issue(order[i]);
    }
    graphs.back()->end(self.stream);
    ASSERT_TRUE(issued);
    for (int replay = 0; replay < options().replays; ++replay) {
      run.load(jobs[replay % kContents]);
      self.barrier();
      for (const auto& graph : graphs) graph->launch(self.stream);
      self.stream.synchronize();
      run.verify();
    }
  });
}

TEST_F(Graph, LowLatencyReplaysGiveTheOraclesBytes) { replay_low_latency(false, true); }

TEST_F(Graph, HalvesReplayInOneGraph) { replay_low_latency(true, true); }

TEST_F(Graph, HalvesReplayInGraphsOfTheirOwn) { replay_low_latency(true, false); }

TEST_F(Graph, RoutingsAreCreatedDuringCaptureAndBelongToNoGraph) {
  const hepConfig_t config = graph_config();
  run_ranks(config, [&](Rank& self) {
    harness::Graph graph;
    RoutingHandle routing;
    graph.begin(self.stream);
    EXPECT_HEP(hepRoutingCreate(routing.out(), self.comm, nullptr));
    EXPECT_HEP(
        harness::update_routing(routing.get(), nullptr, 0, 1, hepIndexInt32, self.stream.get()));
    graph.end(self.stream);
    EXPECT_EQ(graph.num_nodes(), 1u);  // the update
    self.barrier();
    for (int replay = 0; replay < 2; ++replay) graph.launch(self.stream);
    self.stream.synchronize();
    hepRoutingCounts_t counts = HEP_ROUTING_COUNTS_INITIALIZER;
    EXPECT_HEP(hepRoutingQuery(routing.get(), &counts, self.stream.get()));
    EXPECT_EQ(counts.num_flat_rows, 0);
    expect_working(self, config);
  });
}

// The ranks capture one after the other: while one does, CUDA refuses to every thread of the
// process the calls that a capture forbids.
void replay_captured_globally(const hepConfig_t& config, const Job& job) {
  run_ranks(config, [&](Rank& self) {
    harness::Graph graph;
    JobRun run(job, self);
    bool issued = false;
    for (int rank = 0; rank < world().num_ranks(); ++rank) {
      self.barrier();
      if (rank != self.rank) continue;
      graph.begin(self.stream, true);
      issued = run.issue();
      graph.end(self.stream);
    }
    self.barrier();
    ASSERT_TRUE(issued);
    for (int replay = 0; replay < 3; ++replay) {
      run.load(job);
      self.barrier();
      graph.launch(self.stream);
      self.stream.synchronize();
      run.verify();
    }
  });
}

TEST_F(Graph, CapturesOfTheStrictestModeTakeAllCalls) {
  hepConfig_t config = graph_config();
  replay_captured_globally(config, job_of(config, 0));
  config.low_latency_tokens = kTokens;
  config.low_latency_blocks = 8;
  replay_captured_globally(config, low_latency_job_of(config, false, 0));
  replay_captured_globally(config, low_latency_job_of(config, true, 1));
}

TEST_F(Graph, QueriesAreRefusedDuringCapture) {
  const hepConfig_t config = graph_config();
  run_ranks(config, [&](Rank& self) {
    RoutingHandle routing;
    ASSERT_HEP(hepRoutingCreate(routing.out(), self.comm, nullptr));
    self.barrier();
    ASSERT_HEP(
        harness::update_routing(routing.get(), nullptr, 0, 1, hepIndexInt32, self.stream.get()));
    self.stream.synchronize();
    harness::Graph graph;
    hepRoutingCounts_t counts = HEP_ROUTING_COUNTS_INITIALIZER;
    graph.begin(self.stream);
    EXPECT_EQ(hepRoutingQuery(routing.get(), &counts, self.stream.get()), hepErrorInvalidUsage);
    EXPECT_STRNE(hepGetLastError(), "");
    graph.end(self.stream);
    self.barrier();
    expect_working(self, config);
  });
}

}  // namespace
