// SPDX-License-Identifier: Apache-2.0
// Batches on different lanes are under way at the same time and do not meet.
#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "harness/device.h"
#include "ranks/job.h"
#include "ranks/spoilt_batch.h"
#include "ranks/support.h"

namespace {

using harness::world;

constexpr int kLowLatencyLanes = 4;
constexpr int kRounds = 4;

// Many ranks share the cores of one machine; there, fewer tokens show the same.
int most_tokens() { return world().num_ranks() > 8 ? 9 : 70; }

hepConfig_t lanes_config() {
  hepConfig_t config = small_config();
  config.max_tokens = 2 * most_tokens();
  config.low_latency_tokens = most_tokens();
  config.lanes = 2;
  config.heap_bytes = 16 << 20;
  // On the cuda backend all lanes find room on a GPU together.
  config.sm_budget = config.dispatch_blocks = config.combine_blocks = 6;
  config.low_latency_blocks = 12;
  return config;
}

template <typename T>
void shuffle(Random& random, std::vector<T>& values) {
  for (size_t i = values.size(); i > 1; --i)
    std::swap(values[i - 1], values[random.between(0, static_cast<int64_t>(i) - 1)]);
}

std::vector<int64_t> random_tokens(Random& random, int most) {
  std::vector<int64_t> tokens;
  for (int rank = 0; rank < world().num_ranks(); ++rank)
    tokens.push_back(random.chance(25) ? 0 : random.between(0, most));
  return tokens;
}

hepLayout_t random_layout(Random& random) {
  return random.pick({hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded});
}

// A dispatch with its update and a combine on every low-latency lane. On some, combine takes flat
// rows as they are from the heap, where peers could read them: in halves it must not wait until
// they have.
Job batch_on_every_lane(const hepConfig_t& config, int round) {
  Random random(options().seed + 300 + round);
  JobBuilder builder(world().num_ranks(), config, random);
  for (int lane = 0; lane < kLowLatencyLanes; ++lane) {
    const int update = builder.add_update(
        builder.add_routing(8, hepModeLowLatency, lane), config.max_top_k, hepIndexInt32,
        round == 0 ? std::vector<int64_t>(world().num_ranks(), 0)
                   : random_tokens(random, config.low_latency_tokens));
    const bool unmodified = lane % 2 == round % 2;
    const hepLayout_t layout = unmodified ? hepLayoutFlat : random_layout(random);
    const int dispatch = builder.add_dispatch(update, layout, true);
    builder.dispatch(dispatch).x_memory.assign(world().num_ranks(),
                                               lane % 2 ? kHeapMemory : kAnyMemory);
    builder.fold_update(dispatch);
    if (!unmodified) {
      builder.add_combine(update, layout, hepWeightsDispatched, dispatch);
      continue;
    }
    Combine& combine = builder.combine(builder.add_combine(update, layout, hepWeightsNone));
    combine.y_memory.assign(world().num_ranks(), kHeapMemory);
  }
  return builder.finish("round " + std::to_string(round));
}

// Some lanes are ahead of the others. Within a phase the order is the rank's own: first halves wait
// for nobody, and all that a second one waits for comes in an earlier phase on every rank.
std::vector<Call> own_order(uint64_t seed, int rank) {
  Random shared(seed), own(seed + 17 * (rank + 1));
  std::vector<int> lanes[2];
  for (int lane = 0; lane < kLowLatencyLanes; ++lane) lanes[shared.chance(50)].push_back(lane);
  std::vector<Call> order;
  const auto add_phase = [&](hepOperation_t operation, Step step, const std::vector<int>& of) {
    std::vector<int> shuffled = of;
    shuffle(own, shuffled);
    for (const int lane : shuffled) order.push_back({operation, lane, step});
  };
  for (const auto& group : lanes) add_phase(hepOperationDispatch, Step::kSend, group);
  for (const auto& group : lanes) {
    add_phase(hepOperationDispatch, Step::kReceive, group);
    add_phase(hepOperationCombine, Step::kSend, group);
  }
  for (const auto& group : lanes) add_phase(hepOperationCombine, Step::kReceive, group);
  return order;
}

TEST(Lanes, FourBatchesInHalvesAreUnderWayInAnOrderOfEachRanksOwn) {
  const hepConfig_t config = lanes_config();
  std::vector<Job> jobs;
  for (int round = 0; round < kRounds; ++round) jobs.push_back(batch_on_every_lane(config, round));
  run_ranks(config, [&](Rank& self) {
    for (int round = 0; round < kRounds; ++round) {
      JobRun run(jobs[round], self);
      self.barrier();
      for (const Call& call : own_order(options().seed + round, self.rank))
        ASSERT_TRUE(run.issue(call));
      self.stream.synchronize();
      self.barrier();
      run.verify();
    }
  });
}

// Updates, dispatches and combines on one lane.
Job job_of_lane(const hepConfig_t& config, hepMode_t mode, int lane) {
  const bool low_latency = mode == hepModeLowLatency;
  Random random(options().seed + 400 + 10 * mode + lane);
  JobBuilder builder(world().num_ranks(), config, random);
  const int routing = builder.add_routing(16, mode, lane);
  for (int round = 0; round < kRounds; ++round) {
    const int update = builder.add_update(
        routing, static_cast<int>(random.between(1, config.max_top_k)), hepIndexInt64,
        random_tokens(random, low_latency ? config.low_latency_tokens : config.max_tokens));
    const hepLayout_t layout = random_layout(random);
    const int dispatch = builder.add_dispatch(update, layout, random.chance(50));
    builder.dispatch(dispatch).halves.split = low_latency && random.chance(50);
    if (random.chance(50)) builder.fold_update(dispatch);
    const int combine = builder.add_combine(update, layout, hepWeightsRow);
    builder.combine(combine).halves.split = low_latency && random.chance(50);
  }
  return builder.finish(std::string(low_latency ? "low-latency " : "") + "lane " +
                        std::to_string(lane));
}

// One rank's part of a lane.
struct LaneRun {
  LaneRun(const Job& job, Rank& rank)
      : job(job), stream(world().backend()), self{rank.rank, rank.comm, stream}, run(job, self) {}

  const Job& job;
  harness::Stream stream;
  Rank self;
  JobRun run;
};

// A thread a lane, which the host backend needs, because its calls wait.
void issue_by_threads(const std::vector<std::unique_ptr<LaneRun>>& lanes) {
  std::vector<std::thread> threads;
  for (const auto& lane : lanes)
    threads.emplace_back([&lane] { EXPECT_TRUE(lane->run.issue()) << lane->job.name; });
  for (std::thread& thread : threads) thread.join();
}

// A stream a lane. All ranks enqueue in the same order, so that it does not matter what CUDA runs
// at the same time.
void issue_by_streams(const std::vector<std::unique_ptr<LaneRun>>& lanes) {
  Random random(options().seed + 500);
  std::vector<size_t> turns;
  for (size_t lane = 0; lane < lanes.size(); ++lane)
    turns.insert(turns.end(), lanes[lane]->job.order.size(), lane);
  shuffle(random, turns);
  std::vector<size_t> next(lanes.size());
  for (const size_t lane : turns)
    ASSERT_TRUE(lanes[lane]->run.issue(lanes[lane]->job.order[next[lane]++]));
  for (const auto& lane : lanes) lane->stream.synchronize();
}

TEST(Lanes, OperationsOfAllLanesRunAtTheSameTime) {
  if (world().shares_devices())
    GTEST_SKIP() << "the lanes of ranks on one device may not find room there together";
  const hepConfig_t config = lanes_config();
  std::vector<Job> jobs;
  for (int lane = 0; lane < config.lanes; ++lane)
    jobs.push_back(job_of_lane(config, hepModeThroughput, lane));
  for (int lane = 0; lane < kLowLatencyLanes; ++lane)
    jobs.push_back(job_of_lane(config, hepModeLowLatency, lane));
  run_ranks(config, [&](Rank& self) {
    std::vector<std::unique_ptr<LaneRun>> lanes;
    for (const Job& job : jobs) lanes.push_back(std::make_unique<LaneRun>(job, self));
    self.barrier();
    if (world().backend() == hepBackendHost)
      issue_by_threads(lanes);
    else
      issue_by_streams(lanes);
    self.barrier();
    for (const auto& lane : lanes) lane->run.verify();
  });
}

// More choices than the shared memory of a block holds: the update takes a launch of its own on the
// cuda backend, also in halves.
TEST(Lanes, DispatchesUpdateWhateverTheirLanesHaveRoomFor) {
  const int num_ranks = world().num_ranks();
  hepConfig_t config = lanes_config();
  config.max_top_k = 32;
  config.low_latency_tokens = std::max(most_tokens(), 4096 / num_ranks);
  Random random(options().seed + 600);
  JobBuilder builder(num_ranks, config, random);
  const int routing = builder.add_routing(8, hepModeLowLatency, 1);
  for (int round = 0; round < kRounds; ++round) {
    const bool split = round % 2 == 1;
    const int update = builder.add_update(routing, round < 2 ? 4 : config.max_top_k, hepIndexInt32,
                                          random_tokens(random, most_tokens()));
    const int dispatch = builder.add_dispatch(update, hepLayoutExpertMajor, true);
    builder.dispatch(dispatch).halves.split = split;
    builder.fold_update(dispatch);
    const int combine =
        builder.add_combine(update, hepLayoutExpertMajor, hepWeightsDispatched, dispatch);
    builder.combine(combine).halves.split = split;
  }
  run_job(config, builder.finish("more choices than a block holds"));
}

// A kernel has ways of its own for up to 512 tokens, and others for more.
TEST(Lanes, TakeBatchesOfManyTokens) {
  const int num_ranks = world().num_ranks();
  if (num_ranks > 8) GTEST_SKIP() << "many tokens of few ranks will do";
  hepConfig_t config = lanes_config();
  config.max_top_k = 8;
  config.num_experts = 8 * num_ranks;
  config.low_latency_tokens = 513;
  Random random(options().seed + 650);
  JobBuilder builder(num_ranks, config, random);
  const int routing = builder.add_routing(8, hepModeLowLatency, 2);
  for (const int tokens : {512, 513}) {
    for (const hepLayout_t layout : {hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded}) {
      for (const bool split : {false, true}) {
        const int update = builder.add_update(routing, config.max_top_k, hepIndexInt32,
                                              std::vector<int64_t>(num_ranks, tokens));
        const int dispatch = builder.add_dispatch(update, layout, true);
        builder.dispatch(dispatch).halves.split = split;
        builder.fold_update(dispatch);
        const int combine = builder.add_combine(update, layout, hepWeightsDispatched, dispatch);
        builder.combine(combine).halves.split = split;
      }
    }
  }
  run_job(config, builder.finish("many tokens in low latency"));
}

// Outputs that lie where the peers can read them are read there, or sent if they are few; others
// are sent. One after the other, and on the ranks in turn.
TEST(Lanes, OutputsOfSomeRanksAreReadWhereTheyLie) {
  const int num_ranks = world().num_ranks();
  hepConfig_t config = lanes_config();
  if (num_ranks <= 8) config.hidden = 4096;
  config.low_latency_blocks = 2;
  Random random(options().seed + 700);
  JobBuilder builder(num_ranks, config, random);
  const int routing = builder.add_routing(1, hepModeLowLatency, 0);
  for (const int tokens : {1, most_tokens(), most_tokens(), 1, most_tokens()}) {
    const int update = builder.add_update(routing, config.max_top_k, hepIndexInt32,
                                          std::vector<int64_t>(num_ranks, tokens));
    builder.fold_update(builder.add_dispatch(update, hepLayoutFlat, false));
    for (int first = 0; first < 2; ++first) {
      Combine& combine =
          builder.combine(builder.add_combine(update, hepLayoutFlat, hepWeightsNone));
      for (int rank = 0; rank < num_ranks; ++rank)
        combine.y_memory[rank] = rank % 2 == first ? kHeapMemory : kAnyMemory;
    }
  }
  run_job(config, builder.finish("outputs in place and sent"));
}

TEST(Lanes, LimitsTellOfThem) {
  const hepConfig_t config = lanes_config();
  run_ranks(config, [&](Rank& self) {
    hepLimits_t limits = HEP_LIMITS_INITIALIZER;
    ASSERT_HEP(hepCommLimits(self.comm, &limits));
    EXPECT_EQ(limits.lanes, 2);
    EXPECT_EQ(limits.low_latency_lanes, kLowLatencyLanes);
    EXPECT_EQ(limits.low_latency_tokens, config.low_latency_tokens);
    EXPECT_LE(limits.low_latency_blocks, config.low_latency_blocks);
    EXPECT_EQ(limits.low_latency_blocks > 0, world().backend() == hepBackendCuda);
  });
  run_ranks(small_config(), [](Rank& self) {
    hepLimits_t limits = HEP_LIMITS_INITIALIZER;
    ASSERT_HEP(hepCommLimits(self.comm, &limits));
    EXPECT_EQ(limits.lanes, 1);
    EXPECT_EQ(limits.low_latency_lanes, 0);
    EXPECT_EQ(limits.low_latency_tokens, 0);
    EXPECT_EQ(limits.low_latency_blocks, 0);
  });
}

// Warnings of the ranks of this process.
struct Warnings {
  static void keep(hepLogLevel_t level, const char* message, void* context) {
    if (level != hepLogWarning) return;
    auto& warnings = *static_cast<Warnings*>(context);
    const std::lock_guard<std::mutex> lock(warnings.mutex);
    warnings.sentences.push_back(message);
  }

  std::mutex mutex;
  std::vector<std::string> sentences;
};

// No device has as many SMs as the blocks of the low-latency lanes, 4 x 64, and of a throughput
// lane, 16.
TEST(Lanes, WithoutRoomForAllBringAWarningWithBothNumbers) {
  Warnings warnings;
  hepConfig_t config = small_config();
  config.low_latency_tokens = 8;
  config.low_latency_blocks = 64;
  config.log = Warnings::keep;
  config.log_context = &warnings;
  run_ranks(config, [](Rank&) {});
  const bool on_cuda = world().backend() == hepBackendCuda;
  ASSERT_EQ(warnings.sentences.size(), on_cuda ? world().num_local_ranks() : 0);
  for (const std::string& sentence : warnings.sentences)
    expect_mentions(sentence, {"rank ", "5 lanes take 272 SMs", "device", "has"});

  warnings.sentences.clear();
  config.low_latency_blocks = 8;
  run_ranks(config, [](Rank&) {});
  EXPECT_TRUE(warnings.sentences.empty()) << warnings.sentences.front();
}

// What a broken rule of LANES leads to, where ranks of one device stand for lanes: neither dispatch
// has all its blocks on the device, so both wait, until the timeout names the rank that was waited
// for.
TEST(Lanes, WithoutRoomForTwoGridsEndByTheTimeout) {
  if (world().backend() != hepBackendCuda || !world().shares_devices())
    GTEST_SKIP() << "needs two ranks on one device";
  hepConfig_t config = small_config();
  config.sm_budget = config.dispatch_blocks = harness::device::num_sms();
  config.timeout_ms = short_timeout_ms();
  run_ranks(config, [&](Rank& self) {
    Batch batch(self, config);
    ASSERT_HEP(batch.update());
    self.stream.synchronize();
    self.barrier();
    EXPECT_HEP(hepDispatch(batch.routing.get(), &batch.dispatch, self.stream.get()));
    self.stream.synchronize();
    EXPECT_EQ(async_error(self), hepErrorTimeout);
    expect_mentions(hepGetLastError(), {"rank ", "dispatch 1"});
    self.barrier();
  });
  const hepConfig_t usual = small_config();
  run_ranks(usual, [&](Rank& self) { expect_working(self, usual); });
}

}  // namespace
