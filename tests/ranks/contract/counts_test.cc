// SPDX-License-Identifier: Apache-2.0
// The counts of a query: what all ranks need to know to make room.
#include <string>
#include <vector>

#include "ranks/job.h"
#include "ranks/support.h"

namespace {

using harness::world;

constexpr int kTokens = 30;

hepConfig_t counts_config() {
  hepConfig_t config = small_config();
  config.low_latency_tokens = kTokens;
  return config;
}

// An update, alone or in its dispatch, that is asked for its counts. The last rank may be idle.
void add_update(JobBuilder& builder, int routing, hepIndexType_t type, const RoutingPattern& taste,
                bool folds, int64_t tokens_of_last) {
  std::vector<int64_t> tokens(world().num_ranks(), kTokens);
  tokens.back() = tokens_of_last;
  const int update = builder.add_update(routing, 2, type, tokens, taste);
  builder.update(update).query = true;
  const int dispatch = builder.add_dispatch(update, hepLayoutExpertMajor, false);
  if (folds) builder.fold_update(dispatch);
}

// Ids and maps take turns, so that the count of one is not that of the next.
Job counted_job(const hepConfig_t& config, hepMode_t mode, bool folds) {
  Random random(options().seed + 70);
  JobBuilder builder(world().num_ranks(), config, random);
  const int routing = builder.add_routing(8, mode);
  RoutingPattern few, none, excess;
  few.absent_percent = 60;
  none.absent_percent = 100;
  excess.excess_percent = 20;
  for (const int64_t tokens_of_last : {0, kTokens}) {
    add_update(builder, routing, hepIndexMap, excess, folds, tokens_of_last);
    add_update(builder, routing, hepIndexInt32, few, folds, tokens_of_last);
    add_update(builder, routing, hepIndexInt64, none, folds, tokens_of_last);
    add_update(builder, routing, hepIndexMap, few, folds, tokens_of_last);
    add_update(builder, routing, hepIndexMap, none, folds, tokens_of_last);
  }
  return builder.finish("counts, mode " + std::to_string(mode) + (folds ? ", folded" : ""));
}

// On one rank, other than the last, each token of a map selects all experts.
TEST(Counts, TellAllRanksTheMostSelectionsOfAnyToken) {
  const hepConfig_t config = counts_config();
  run_ranks(config, [&](Rank& self) {
    RoutingHandle routing;
    ASSERT_HEP(hepRoutingCreate(routing.out(), self.comm, nullptr));
    const std::vector<unsigned char> map(kTokens * config.num_experts, self.rank == 0 ? 1 : 0);
    harness::Buffer indices(world().backend(), map.size());
    indices.upload(map.data(), map.size());
    self.barrier();
    ASSERT_HEP(harness::update_routing(routing.get(), indices.data(), kTokens, 2, hepIndexMap,
                                       self.stream.get()));
    hepRoutingCounts_t counts = HEP_ROUTING_COUNTS_INITIALIZER;
    ASSERT_HEP(hepRoutingQuery(routing.get(), &counts, self.stream.get()));
    EXPECT_EQ(counts.max_selections, config.num_experts);
    EXPECT_EQ(counts.max_expert_rows, self.rank == 0 ? kTokens : 0);
    self.barrier();
  });
}

TEST(Counts, AreThoseOfTheLatestUpdate) {
  const hepConfig_t config = counts_config();
  run_ranks(config, [&](Rank& self) {
    for (const hepMode_t mode : {hepModeThroughput, hepModeLowLatency})
      for (const bool folds : {false, true}) {
        const Job job = counted_job(config, mode, folds);
        JobRun(job, self).complete();
      }
  });
}

}  // namespace
