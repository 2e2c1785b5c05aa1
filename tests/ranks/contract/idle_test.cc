// SPDX-License-Identifier: Apache-2.0
// A rank without tokens, or without room for rows, may leave anything in the pointers that it does
// not use.
#include <string>
#include <vector>

#include "ranks/job.h"
#include "ranks/support.h"

namespace {

using harness::world;

constexpr int kTokens = 20;

hepConfig_t idle_config() {
  hepConfig_t config = small_config();
  config.scale_bytes = 8;
  config.low_latency_tokens = kTokens;
  return config;
}

// The last rank has neither tokens nor rows; the first one has tokens and takes no rows.
void add_batch(JobBuilder& builder, int routing, hepLayout_t layout, bool split) {
  std::vector<int64_t> tokens(world().num_ranks(), kTokens);
  tokens.back() = 0;
  const int update = builder.add_update(routing, 2, hepIndexInt32, tokens);
  const int index = builder.add_dispatch(update, layout, true);
  Dispatch& dispatch = builder.dispatch(index);
  dispatch.has_scales = true;
  dispatch.halves.split = split;
  for (auto* capacities : {&dispatch.capacity, &dispatch.gather_capacity})
    capacities->front() = capacities->back() = 0;
  if (split) builder.fold_update(index);
  for (const hepWeightMode_t mode : {hepWeightsNone, hepWeightsDispatched, hepWeightsRow}) {
    Combine& combine = builder.combine(builder.add_combine(update, layout, mode, index));
    combine.capacity = dispatch.capacity;
    combine.has_gradients = true;
    combine.halves.split = split;
  }
}

TEST(Idle, PointersToNothingAreIgnored) {
  const hepConfig_t config = idle_config();
  run_ranks(config, [&](Rank& self) {
    for (const hepMode_t mode : {hepModeThroughput, hepModeLowLatency}) {
      Random random(options().seed + 50);
      JobBuilder builder(world().num_ranks(), config, random);
      builder.use_wild_pointers();
      const int routing = builder.add_routing(8, mode);
      for (const hepLayout_t layout : {hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded})
        add_batch(builder, routing, layout, mode == hepModeLowLatency);
      const Job job = builder.finish("idle ranks, mode " + std::to_string(mode));
      JobRun(job, self).complete();
    }
  });
}

TEST(Idle, ABatchMayHaveNoTokensOnAnyRank) {
  const hepConfig_t config = idle_config();
  run_ranks(config, [&](Rank& self) {
    Random random(options().seed + 51);
    JobBuilder builder(world().num_ranks(), config, random);
    builder.use_wild_pointers();
    const int update = builder.add_update(builder.add_routing(1), 2, hepIndexInt32,
                                          std::vector<int64_t>(world().num_ranks(), 0));
    const int dispatch = builder.add_dispatch(update, hepLayoutFlat, true);
    builder.add_combine(update, hepLayoutFlat, hepWeightsDispatched, dispatch);
    const Job job = builder.finish("no tokens");
    JobRun(job, self).complete();
  });
}

}  // namespace
