// SPDX-License-Identifier: Apache-2.0
// Several domains: what a communicator tells of them, and rings that hold less than a batch.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "ranks/job.h"
#include "ranks/random/random_job.h"
#include "ranks/support.h"

namespace {

using harness::world;

constexpr int kMaxRing = 4;  // rows
constexpr const char* kNeedsDomains = "needs several domains";

hepConfig_t domain_config() {
  hepConfig_t config = small_config();
  config.domain_size = world().domain_size();
  return config;
}

// The least network_bytes that a config may have: rings of one row for each other domain.
int64_t least_network_bytes(hepConfig_t config) {
  int64_t refused = 0, legal = int64_t{1} << 30;
  config.domain_size = world().domain_size();
  while (legal - refused > 1) {
    const int64_t middle = refused + (legal - refused) / 2;
    config.network_bytes = middle;
    (hepConfigCheck(&config, world().num_ranks()) == hepSuccess ? legal : refused) = middle;
  }
  return legal;
}

TEST(Domains, LimitsTellTheirNumberAndSize) {
  run_ranks(domain_config(), [](Rank& self) {
    hepLimits_t limits = HEP_LIMITS_INITIALIZER;
    ASSERT_HEP(hepCommLimits(self.comm, &limits));
    EXPECT_EQ(limits.domain_size, world().domain_size());
    EXPECT_EQ(limits.num_domains * limits.domain_size, world().num_ranks());
  });
}

TEST(Domains, RingsWithoutRoomForARowAreRefused) {
  if (!world().has_several_domains()) GTEST_SKIP() << kNeedsDomains;
  hepConfig_t config = domain_config();
  config.network_bytes = least_network_bytes(config) - 1;
  expect_refused("a byte too few", hepConfigCheck(&config, world().num_ranks()),
                 hepErrorInvalidArgument, {"network_bytes", std::to_string(config.network_bytes)});
}

// Asynchronous errors stay with the communicator.
void keep_async_errors(const Job& before, Job* job) {
  for (int rank = 0; rank < world().num_ranks(); ++rank) {
    job->misrouted[rank] |= before.misrouted[rank];
    job->overflowed[rank] |= before.overflowed[rank];
  }
}

// Every rank sends, takes and relays through rings that are full nearly always. Batches of some
// ranks are empty, and some tokens select nothing.
TEST(Domains, RingsOfAFewRowsLetEveryBatchThrough) {
  if (!world().has_several_domains()) GTEST_SKIP() << kNeedsDomains;
  const int jobs = options().cases / kMaxRing;
  for (int rows = 1; rows <= kMaxRing; ++rows) {
    Random random(options().seed + rows);
    hepConfig_t config = random_config(random, world().num_ranks(), true);
    config.low_latency_tokens = 0;
    config.max_tokens = 40;
    config.timeout_ms = config.init_timeout_ms = kTimeoutMs;
    config.network_bytes = rows * least_network_bytes(config);
    run_ranks(config, [&](Rank& self) {
      Job before;
      for (int number = 0; number < jobs; ++number) {
        Job job = random_job(options().seed * 1000 + number, config, world().num_ranks(), Size());
        job.name = "rings of " + std::to_string(rows) + " rows, job " + std::to_string(number);
        if (number > 0) keep_async_errors(before, &job);
        JobRun run(job, self);
        self.barrier();
        ASSERT_TRUE(run.issue()) << job.name;
        self.barrier();
        run.verify();
        before = job;
      }
    });
  }
}

TEST(Domains, ATokenMaySelectEveryRankOfEveryDomain) {
  hepConfig_t config = domain_config();
  config.num_experts = world().num_ranks();
  config.max_top_k = std::min(world().num_ranks(), 32);
  if (world().has_several_domains()) config.network_bytes = 2 * least_network_bytes(config);
  Random random(options().seed + 61);
  JobBuilder builder(world().num_ranks(), config, random);
  RoutingPattern taste;
  taste.absent_percent = 0;
  taste.distinct = true;
  const std::vector<int64_t> tokens(world().num_ranks(), 33);
  const int update =
      builder.add_update(builder.add_routing(1), config.max_top_k, hepIndexInt32, tokens, taste);
  for (const hepLayout_t layout : {hepLayoutFlat, hepLayoutExpertMajor}) {
    const int dispatch = builder.add_dispatch(update, layout, true);
    const int combine = builder.add_combine(update, layout, hepWeightsDispatched, dispatch);
    builder.combine(combine).has_gradients = true;
  }
  run_job(config, builder.finish("all ranks"));
}

// What a rank has written counts, and nobody needs it any more.
TEST(Domains, ARankMayLeaveRightAfterItsLastOperation) {
  constexpr int kTimes = 10;
  const hepConfig_t config = domain_config();
  Random random(options().seed + 62);
  JobBuilder builder(world().num_ranks(), config, random);
  const std::vector<int64_t> tokens(world().num_ranks(), 40);
  const int update = builder.add_update(builder.add_routing(1), 4, hepIndexInt32, tokens);
  const int dispatch = builder.add_dispatch(update, hepLayoutExpertMajor, true);
  builder.add_combine(update, hepLayoutExpertMajor, hepWeightsDispatched, dispatch);
  const Job job = builder.finish("the last operations");
  for (int time = 0; time < kTimes; ++time)
    world().run([&](int rank) {
      hepComm_t comm = nullptr;
      ASSERT_HEP(world().create_comm(rank, config, &comm)) << "rank " << rank;
      harness::Stream stream(world().backend());
      Rank self{rank, comm, stream};
      {
        JobRun run(job, self);
        self.barrier();
        ASSERT_TRUE(run.issue()) << "rank " << rank;
        stream.synchronize();
        // Ranks leave at different times, and some while others still work.
        if (rank % 2 == time % 2) run.verify();
      }
      EXPECT_HEP(hepCommDestroy(comm)) << "rank " << rank;
    });
}

TEST(Domains, HalvesThatTheRingsDoNotHoldAreRefused) {
  if (!world().has_several_domains()) GTEST_SKIP() << kNeedsDomains;
  hepConfig_t config = domain_config();
  config.low_latency_tokens = 64;
  config.network_bytes = least_network_bytes(config);
  run_ranks(config, [&](Rank& self) {
    hepRoutingConfig_t place = HEP_ROUTING_CONFIG_INITIALIZER;
    place.mode = hepModeLowLatency;
    RoutingHandle routing;
    ASSERT_HEP(hepRoutingCreate(routing.out(), self.comm, &place));
    hepUpdate_t update = HEP_UPDATE_INITIALIZER;
    update.index_type = hepIndexInt32;
    update.top_k = 1;
    hepDispatchArgs_t args = HEP_DISPATCH_ARGS_INITIALIZER;
    args.layout = hepLayoutFlat;
    args.update = &update;
    expect_refused("a first half", hepDispatchSend(routing.get(), &args, self.stream.get()),
                   hepErrorUnsupported, {"network_bytes", "64 tokens"});
    EXPECT_HEP(hepDispatch(routing.get(), &args, self.stream.get())) << "as a whole";
  });
}

}  // namespace
