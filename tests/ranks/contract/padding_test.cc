// SPDX-License-Identifier: Apache-2.0
// The blocks of experts start at multiples of any alignment, and all else follows from that.
#include <string>
#include <vector>

#include "ranks/job.h"
#include "ranks/support.h"

namespace {

using harness::world;

constexpr int kTokens = 40;

// Rows with their weights and origins, the list for gather GEMMs, and the way back.
void add_batch(JobBuilder& builder, int routing, hepIndexType_t index_type, bool folds) {
  const std::vector<int64_t> tokens(world().num_ranks(), kTokens);
  const int update = builder.add_update(routing, 3, index_type, tokens);
  const int dispatch = builder.add_dispatch(update, hepLayoutExpertMajor, true);
  if (folds) builder.fold_update(dispatch);
  builder.add_combine(update, hepLayoutExpertMajor, hepWeightsDispatched, dispatch);
  builder.add_dispatch(update, hepLayoutFlat, true);
}

Job padded_job(const hepConfig_t& config, hepMode_t mode, int alignment) {
  Random random(options().seed + alignment);
  JobBuilder builder(world().num_ranks(), config, random);
  const int routing = builder.add_routing(alignment, mode);
  add_batch(builder, routing, hepIndexInt32, true);
  add_batch(builder, routing, hepIndexMap, false);
  return builder.finish("alignment " + std::to_string(alignment) + ", mode " +
                        std::to_string(mode));
}

TEST(Padding, BlocksOfExpertsStartAtMultiplesOfAnyNumber) {
  hepConfig_t config = small_config();
  config.low_latency_tokens = kTokens;
  std::vector<Job> jobs;
  for (const hepMode_t mode : {hepModeThroughput, hepModeLowLatency})
    for (const int alignment : {3, 7, 100, 256, 1023, 4095, 4096})
      jobs.push_back(padded_job(config, mode, alignment));
  run_ranks(config, [&](Rank& self) {
    for (const Job& job : jobs) JobRun(job, self).complete();
  });
}

}  // namespace
