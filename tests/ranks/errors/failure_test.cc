// SPDX-License-Identifier: Apache-2.0
// What goes wrong elsewhere - ranks that disagree, that never come, that stay away from an
// operation - ends on every rank, within the timeout, with an error that says who and what.
#include <algorithm>
#include <string>
#include <vector>

#include "ranks/job.h"
#include "ranks/support.h"

namespace {

using harness::world;

int last_rank() { return world().num_ranks() - 1; }

// Every rank but the last gives `config`, the last `other`: creation must fail everywhere.
void expect_init_fails(const hepConfig_t& config, const hepConfig_t& other, hepResult_t expected,
                       const std::vector<std::string>& mentions) {
  world().run([&](int rank) {
    hepComm_t comm = nullptr;
    EXPECT_EQ(world().create_comm(rank, rank == last_rank() ? other : config, &comm), expected)
        << "rank " << rank << ": " << hepGetLastError();
    EXPECT_EQ(comm, nullptr);
    expect_mentions(hepGetLastError(), mentions);
  });
  run_ranks(config, [&](Rank& self) { expect_working(self, config); });
}

TEST(Failure, RanksThatDisagreeOnTheConfigAllLearnWhoAndWhere) {
  if (world().num_ranks() == 1) GTEST_SKIP() << "needs two ranks that disagree";
  const hepConfig_t config = small_config();
  const std::string last = std::to_string(last_rank());
  hepConfig_t other = config;
  other.hidden = 128;
  expect_init_fails(config, other, hepErrorMismatch, {"rank", last, "hidden", "64", "128"});
  other = config;
  other.max_tokens = 63;
  expect_init_fails(config, other, hepErrorMismatch, {"rank", last, "max_tokens", "64", "63"});
  other = config;
  other.dispatch_blocks = 3;
  expect_init_fails(config, other, hepErrorMismatch, {"rank", last, "dispatch_blocks", "3"});
}

TEST(Failure, OneRanksBadConfigFailsInitOnEveryRank) {
  const hepConfig_t config = small_config();
  hepConfig_t other = config;
  other.hidden = 12;
  world().run([&](int rank) {
    hepComm_t comm = nullptr;
    EXPECT_NE(world().create_comm(rank, rank == last_rank() ? other : config, &comm), hepSuccess);
    EXPECT_EQ(comm, nullptr);
    expect_mentions(hepGetLastError(), {"hidden", "12"});
    if (rank != last_rank()) {
      expect_mentions(hepGetLastError(), {"rank", std::to_string(last_rank())});
    }
  });
  run_ranks(config, [&](Rank& self) { expect_working(self, config); });
}

TEST(Failure, EveryRankLearnsOfAllBadConfigs) {
  if (world().num_ranks() == 1) GTEST_SKIP() << "needs two ranks with bad configs";
  const hepConfig_t config = small_config();
  world().run([&](int rank) {
    hepConfig_t mine = config;
    if (rank == 0) mine.hidden = 12;
    if (rank == last_rank()) mine.domain_size = 72;
    hepComm_t comm = nullptr;
    EXPECT_EQ(world().create_comm(rank, mine, &comm), hepErrorInvalidArgument)
        << "rank " << rank << ": " << hepGetLastError();
    EXPECT_EQ(comm, nullptr);
    expect_mentions(
        hepGetLastError(),
        {"rank 0", "hidden", "12", "rank " + std::to_string(last_rank()), "domain_size", "72"});
  });
}

TEST(Failure, ABadRankOverACallbackFailsInitOnEveryRank) {
  world().run([](int rank) {
    const hepAllGather_t gather = [](const void* send, void* receive, size_t bytes, void* context) {
      return world().all_gather(*static_cast<int*>(context), send, receive, bytes) ? 0 : 1;
    };
    const hepConfig_t config = small_config();
    const int told = rank == last_rank() ? world().num_ranks() : rank;
    hepComm_t comm = nullptr;
    EXPECT_EQ(hepCommInitCallback(&comm, world().num_ranks(), told, gather, &rank, &config),
              hepErrorInvalidArgument)
        << "rank " << rank << ": " << hepGetLastError();
    EXPECT_EQ(comm, nullptr);
    expect_mentions(hepGetLastError(), {"rank is " + std::to_string(world().num_ranks())});
    if (rank != last_rank()) {
      expect_mentions(hepGetLastError(), {"rank " + std::to_string(last_rank()) + " "});
    }
  });
}

TEST(Failure, InitNamesTheRankThatNeverComes) {
  if (world().num_ranks() == 1) GTEST_SKIP() << "needs a rank that stays away";
  hepConfig_t config = small_config();
  config.backend = world().backend();
  config.init_timeout_ms = 500 + 20 * world().num_ranks();  // in which all others come
  world().run([&](int rank) {
    hepUniqueId_t id{};
    if (rank == 0) {
      EXPECT_HEP(hepGetUniqueId(&id));
    }
    std::vector<hepUniqueId_t> ids(world().num_ranks());
    ASSERT_TRUE(world().all_gather(rank, &id, ids.data(), sizeof id));
    if (rank != last_rank()) {
      hepComm_t comm = nullptr;
      EXPECT_EQ(hepCommInitRank(&comm, world().num_ranks(), &ids[0], rank, &config),
                hepErrorTimeout)
          << "rank " << rank << ": " << hepGetLastError();
      EXPECT_EQ(comm, nullptr);
      expect_mentions(hepGetLastError(), {"rank", std::to_string(last_rank())});
    }
    world().barrier(rank);
  });
  const hepConfig_t good = small_config();
  run_ranks(good, [&](Rank& self) { expect_working(self, good); });
}

TEST(Failure, FailingCallbackIsReported) {
  hepConfig_t config = small_config();
  config.backend = world().backend();
  config.init_timeout_ms = 500;
  hepComm_t comm = nullptr;
  const hepAllGather_t broken = [](const void*, void*, size_t, void*) { return 17; };
  EXPECT_EQ(hepCommInitCallback(&comm, world().num_ranks(), 0, broken, nullptr, &config),
            hepErrorSystem);
  EXPECT_EQ(comm, nullptr);
  EXPECT_STRNE(hepGetLastError(), "");
}

struct Absence {
  hepOperation_t operation;
  hepPhase_t phase;
  uint64_t number;
  Mentions words;  // for operation and phase
};

// Up to 32 ranks, every rank needs every other in every operation: each token selects an expert of
// each rank.
struct EveryoneNeedsEveryone {
  // `updates`: a dispatch updates the routing, in the same launch if the backend can.
  EveryoneNeedsEveryone(Rank& rank, const hepRoutingConfig_t& place, bool updates)
      : self(rank), in_halves(place.mode == hepModeLowLatency && !updates) {
    const int experts_per_rank = config.num_experts / top_k;
    std::vector<int32_t> ids;
    for (int token = 0; token < kTokens; ++token) {
      for (int k = 0; k < top_k; ++k) ids.push_back(k * experts_per_rank);
    }
    indices = harness::Buffer(backend, ids.size() * sizeof(int32_t));
    indices.upload(ids.data(), indices.bytes());
    const int64_t rows = int64_t{top_k} * kTokens;
    y = harness::Buffer(backend, rows * config.hidden * 2);
    x = harness::Buffer(backend, kTokens * config.hidden * 2);
    y.fill(0);
    x.fill(0);
    dispatch.layout = combine.layout = hepLayoutFlat;
    dispatch.capacity = combine.capacity = rows;
    dispatch.x = x.data();
    dispatch.rows = y.data();
    combine.y = y.data();
    combine.out = x.data();
    choice = harness::make_update(indices.data(), kTokens, top_k, hepIndexInt32);
    if (updates) dispatch.update = &choice;
    EXPECT_HEP(hepRoutingCreate(routing.out(), rank.comm, &place));
    rank.barrier();
  }

  // On a low-latency routing in halves, of which the first needs nobody, unless the dispatch
  // updates it.
  hepResult_t issue(hepOperation_t operation) {
    const hepStream_t stream = self.stream.get();
    if (operation == hepOperationRouting) return hepRoutingUpdate(routing.get(), &choice, stream);
    if (!in_halves)
      return operation == hepOperationDispatch ? hepDispatch(routing.get(), &dispatch, stream)
                                               : hepCombine(routing.get(), &combine, stream);
    const hepResult_t sent = operation == hepOperationDispatch
                                 ? hepDispatchSend(routing.get(), &dispatch, stream)
                                 : hepCombineSend(routing.get(), &combine, stream);
    if (sent != hepSuccess) return sent;
    return operation == hepOperationDispatch ? hepDispatchReceive(routing.get(), stream)
                                             : hepCombineReceive(routing.get(), stream);
  }

  static int most_top_k() { return std::min(world().num_ranks(), 32); }

  static hepConfig_t make_config() {
    hepConfig_t config = small_config();
    config.max_top_k = most_top_k();
    config.timeout_ms = short_timeout_ms();
    config.low_latency_tokens = kTokens;
    config.lanes = 2;
    return config;
  }

  static constexpr int kTokens = 40;
  const hepConfig_t config = make_config();
  const int top_k = most_top_k();
  const hepBackend_t backend = world().backend();
  Rank& self;
  const bool in_halves;
  RoutingHandle routing;
  harness::Buffer indices, x, y;
  hepUpdate_t choice = HEP_UPDATE_INITIALIZER;
  hepDispatchArgs_t dispatch = HEP_DISPATCH_ARGS_INITIALIZER;
  hepCombineArgs_t combine = HEP_COMBINE_ARGS_INITIALIZER;
};

void expect_failure_named(Rank& self, const Absence& absence, const hepRoutingConfig_t& place) {
  EXPECT_EQ(async_error(self), hepErrorTimeout);
  expect_mentions(hepGetLastError(), {"rank " + std::to_string(last_rank())});
  expect_mentions(hepGetLastError(), absence.words);
  hepFailure_t failure = HEP_FAILURE_INITIALIZER;
  EXPECT_HEP(hepCommGetFailure(self.comm, &failure));
  EXPECT_EQ(failure.result, hepErrorTimeout);
  EXPECT_EQ(failure.operation, absence.operation);
  // Rows and sums of another domain are missed where they land.
  const bool landing = world().has_several_domains() && failure.phase == hepPhaseLanding;
  EXPECT_TRUE(failure.phase == absence.phase || landing) << failure.phase;
  EXPECT_EQ(failure.rank, self.rank);
  EXPECT_EQ(failure.missing_rank, last_rank());
  const int domain_size = world().domain_size();
  const int via = self.rank / domain_size * domain_size + last_rank() % domain_size;
  EXPECT_TRUE(failure.via_rank == -1 || failure.via_rank == via) << failure.via_rank;
  EXPECT_EQ(failure.number, absence.number);
  EXPECT_LT(failure.seen, failure.expected);
  EXPECT_EQ(failure.mode, place.mode);
  EXPECT_EQ(failure.lane, place.lane);
}

void expect_seen(Rank& self, uint64_t seen) {
  hepFailure_t failure = HEP_FAILURE_INITIALIZER;
  EXPECT_HEP(hepCommGetFailure(self.comm, &failure));
  EXPECT_EQ(failure.seen, seen);
}

// The operations before go well; then the last rank stays away from one more.
void expect_absence_named(const std::vector<hepOperation_t>& before, const Absence& absence,
                          const hepRoutingConfig_t& place, bool updates = false) {
  const hepConfig_t config = EveryoneNeedsEveryone::make_config();
  run_ranks(config, [&](Rank& self) {
    EveryoneNeedsEveryone work(self, place, updates);
    for (const hepOperation_t operation : before) ASSERT_HEP(work.issue(operation));
    self.stream.synchronize();
    self.barrier();
    if (self.rank != last_rank()) {
      const hepOperation_t call = updates ? hepOperationDispatch : absence.operation;
      const hepResult_t result = work.issue(call);
      EXPECT_TRUE(result == hepErrorTimeout ||
                  (world().backend() == hepBackendCuda && result == hepSuccess))
          << hepGetErrorString(result);
      self.stream.synchronize();
      expect_failure_named(self, absence, place);
      // On the cuda backend, choices of every second update lie in one place.
      if (updates && world().backend() == hepBackendCuda) expect_seen(self, absence.number - 2);
      EXPECT_EQ(work.issue(call), hepErrorTimeout) << "a later call";
    }
    self.barrier();
  });
  const hepConfig_t good = small_config();
  run_ranks(good, [&](Rank& self) { expect_working(self, good); });
}

// On a lane of each mode that is not the first.
void expect_absence_named(const std::vector<hepOperation_t>& before, const Absence& absence) {
  hepRoutingConfig_t place = HEP_ROUTING_CONFIG_INITIALIZER;
  place.lane = 1;
  expect_absence_named(before, absence, place);
  place.mode = hepModeLowLatency;
  place.lane = 3;
  expect_absence_named(before, absence, place);
}

TEST(Failure, UpdateNamesThePeerThatStaysAway) {
  if (world().num_ranks() < 2) GTEST_SKIP() << "needs a peer that stays away";
  expect_absence_named({hepOperationRouting},
                       {hepOperationRouting, hepPhaseRecords, 2, {"routing update 2", "records"}});
}

TEST(Failure, DispatchNamesThePeerThatStaysAway) {
  if (world().num_ranks() < 2) GTEST_SKIP() << "needs a peer that stays away";
  if (world().num_ranks() > 32) GTEST_SKIP() << "a token cannot select every rank";
  expect_absence_named({hepOperationRouting},
                       {hepOperationDispatch, hepPhaseRows, 1, {"dispatch 1", "rows"}});
}

TEST(Failure, UpdateInADispatchNamesThePeerThatStaysAway) {
  if (world().num_ranks() < 2) GTEST_SKIP() << "needs a peer that stays away";
  if (world().num_ranks() > 32) GTEST_SKIP() << "a token cannot select every rank";
  hepRoutingConfig_t place = HEP_ROUTING_CONFIG_INITIALIZER;
  place.mode = hepModeLowLatency;
  expect_absence_named(  // where an earlier update has left its words
      {hepOperationDispatch, hepOperationDispatch},
      {hepOperationRouting, hepPhaseRecords, 3, {"routing update 3", "records"}}, place, true);
}

TEST(Failure, CombineNamesThePeerThatStaysAway) {
  if (world().num_ranks() < 2) GTEST_SKIP() << "needs a peer that stays away";
  if (world().num_ranks() > 32) GTEST_SKIP() << "a token cannot select every rank";
  expect_absence_named({hepOperationRouting, hepOperationDispatch},
                       {hepOperationCombine, hepPhasePartials, 1, {"combine 1", "partial"}});
}

}  // namespace
