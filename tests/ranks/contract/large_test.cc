// SPDX-License-Identifier: Apache-2.0
// A batch of the size that training has.
#include <vector>

#include "ranks/job.h"
#include "ranks/support.h"

namespace {

using harness::world;

TEST(Large, FullSizeBatchGivesTheOraclesBytes) {
  if (world().backend() != hepBackendCuda && !options().large) {
    GTEST_SKIP() << "takes long on the host backend; --large runs it";
  }
  const int num_ranks = world().num_ranks();
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.max_tokens = 4096;
  config.hidden = 7168;
  config.num_experts = (32 + num_ranks - 1) / num_ranks * num_ranks;
  config.max_top_k = 8;
  config.heap_bytes = int64_t{1 + num_ranks} * config.max_tokens * config.hidden * 2;
  config.timeout_ms = config.init_timeout_ms = 3 * kTimeoutMs;

  Random random(options().seed + 20);
  RoutingPattern pattern;
  pattern.distinct = true;
  pattern.absent_percent = 0;
  JobBuilder builder(num_ranks, config.num_experts, config.hidden, random);
  const int update = builder.add_update(builder.add_routing(128), 8, hepIndexInt64,
                                        std::vector<int64_t>(num_ranks, 4096), pattern);
  builder.update(update).query = true;
  const int dispatch = builder.add_dispatch(update, hepLayoutExpertMajor, true);
  builder.dispatch(dispatch).x_memory.assign(num_ranks, kHeapMemory);
  builder.add_dispatch(update, hepLayoutFlat, false);
  builder.add_combine(update, hepLayoutExpertMajor, hepWeightsDispatched, dispatch);
  builder.add_combine(update, hepLayoutFlat, hepWeightsNone);
  builder.combine(builder.add_combine(update, hepLayoutFlat, hepWeightsNone))
      .y_memory.assign(num_ranks, kHeapMemory);
  run_job(config, builder.finish("full size"));
}

}  // namespace
