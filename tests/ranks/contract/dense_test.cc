// SPDX-License-Identifier: Apache-2.0
// Weights and their gradients by token and expert, on some ranks or on all, say what those by
// selection say.
#include <string>
#include <vector>

#include "ranks/job.h"
#include "ranks/support.h"

namespace {

using harness::world;

constexpr int kTokens = 30;
constexpr int kTopK = 4;

hepConfig_t dense_config() {
  hepConfig_t config = small_config();
  config.low_latency_tokens = kTokens;
  return config;
}

// Dense on every second rank, or on all.
bool is_dense(int rank, bool mixed) { return !mixed || rank % 2 == 0; }

int add_dense_dispatch(JobBuilder& builder, int update, hepLayout_t layout, bool mixed) {
  const int index = builder.add_dispatch(update, layout, true);
  for (int rank = 0; rank < world().num_ranks(); ++rank)
    if (is_dense(rank, mixed)) builder.give_dense_weights(index, rank);
  return index;
}

Combine& add_dense_combine(JobBuilder& builder, int update, hepLayout_t layout, int dispatch,
                           bool mixed) {
  Combine& combine =
      builder.combine(builder.add_combine(update, layout, hepWeightsDispatched, dispatch));
  combine.has_gradients = true;
  for (int rank = 0; rank < world().num_ranks(); ++rank)
    combine.dense_gradients[rank] = is_dense(rank, mixed);
  return combine;
}

// Few experts: tokens select one several times. The second dispatch uses a routing that is there.
void add_batch(JobBuilder& builder, int routing, hepLayout_t layout, hepIndexType_t type,
               bool mixed, bool split) {
  RoutingPattern taste;
  taste.hot_percent = 30;
  const int update = builder.add_update(routing, kTopK, type,
                                        std::vector<int64_t>(world().num_ranks(), kTokens), taste);
  const int first = add_dense_dispatch(builder, update, layout, mixed);
  if (split) builder.fold_update(first);
  add_dense_combine(builder, update, layout, first, mixed).halves.split = split;
  const int second = add_dense_dispatch(builder, update, layout, !mixed);
  builder.dispatch(second).halves.split = split;
  // Rows are dropped, and rank 0 takes none.
  Combine& dropped = add_dense_combine(builder, update, layout, second, !mixed);
  for (int64_t& capacity : dropped.capacity) capacity /= 2;
  dropped.capacity.front() = 0;
}

Job dense_job(const hepConfig_t& config, hepMode_t mode, hepLayout_t layout) {
  Random random(options().seed + 80 + layout);
  JobBuilder builder(world().num_ranks(), config, random);
  const int routing = builder.add_routing(8, mode);
  const bool split = mode == hepModeLowLatency;
  for (const hepIndexType_t type : {hepIndexInt32, hepIndexInt64, hepIndexMap})
    add_batch(builder, routing, layout, type, type == hepIndexInt64, split);
  return builder.finish("dense, mode " + std::to_string(mode) + ", layout " +
                        std::to_string(layout));
}

TEST(Dense, WeightsAndGradientsAreThoseOfTheSelectedExperts) {
  const hepConfig_t config = dense_config();
  std::vector<Job> jobs;
  for (const hepMode_t mode : {hepModeThroughput, hepModeLowLatency})
    for (const hepLayout_t layout : {hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded})
      jobs.push_back(dense_job(config, mode, layout));
  run_ranks(config, [&](Rank& self) {
    for (const Job& job : jobs) JobRun(job, self).complete();
  });
}

// Of large top-k a warp takes one token at a time.
TEST(Dense, ATokenMaySelectOneExpertWithAllOfItsSelections) {
  hepConfig_t config = dense_config();
  config.max_top_k = 32;
  std::vector<Job> jobs;
  for (const int top_k : {3, 31, 32}) {
    Random random(options().seed + 90 + top_k);
    JobBuilder builder(world().num_ranks(), config, random);
    RoutingPattern taste;
    taste.hot_percent = 100;
    taste.absent_percent = 5;
    const int update = builder.add_update(builder.add_routing(1), top_k, hepIndexInt32,
                                          std::vector<int64_t>(world().num_ranks(), 9), taste);
    const int dispatch = add_dense_dispatch(builder, update, hepLayoutExpertMajor, false);
    add_dense_combine(builder, update, hepLayoutExpertMajor, dispatch, false);
    jobs.push_back(builder.finish("one expert, top-" + std::to_string(top_k)));
  }
  run_ranks(config, [&](Rank& self) {
    for (const Job& job : jobs) JobRun(job, self).complete();
  });
}

// The length of the rows decides how many warps a block of combine has, and so how many tokens it
// takes at once: of 64 tokens with top-8 a warp of 16 has four.
TEST(Dense, GradientsOfAllTokensReturnWhateverTheLengthOfTheRows) {
  constexpr int kMostTopK = 8;
  hepConfig_t config = small_config();
  config.max_top_k = kMostTopK;
  config.hidden = 6144;
  Random random(options().seed + 95);
  JobBuilder builder(world().num_ranks(), config, random);
  const int update =
      builder.add_update(builder.add_routing(1), kMostTopK, hepIndexInt32,
                         std::vector<int64_t>(world().num_ranks(), config.max_tokens), {});
  const int dispatch = add_dense_dispatch(builder, update, hepLayoutFlat, false);
  for (const int hidden : {16, 3072, 4096, 5120, 6144})
    add_dense_combine(builder, update, hepLayoutFlat, dispatch, false).hidden = hidden;
  run_job(config, builder.finish("dense, rows of several lengths"));
}

}  // namespace
