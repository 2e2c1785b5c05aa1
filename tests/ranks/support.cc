// SPDX-License-Identifier: Apache-2.0
#include "support.h"

#include "job.h"

Options& options() {
  static Options instance;
  return instance;
}

// splitmix64
uint64_t Random::next() {
  state_ += 0x9e3779b97f4a7c15u;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Other operations succeed on the same communicator before, with more threads than cores, or with
// kernels that are launched for the first time.
int short_timeout_ms() {
  const harness::World& world = harness::world();
  return (world.backend() == hepBackendCuda ? 500 : 150) + 20 * world.num_ranks();
}

hepConfig_t small_config() {
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.max_tokens = 64;
  config.hidden = 64;
  config.num_experts = 4 * harness::world().num_ranks();
  config.max_top_k = 4;
  config.heap_bytes = 1 << 20;
  if (harness::world().has_several_domains()) config.domain_size = harness::world().domain_size();
  config.timeout_ms = config.init_timeout_ms = kTimeoutMs;
  // The library would give so small batches one or two blocks: many are to work together here.
  config.sm_budget = config.dispatch_blocks = config.combine_blocks = 16;
  config.low_latency_blocks = 32;
  return config;
}

void run_ranks(const hepConfig_t& config, const std::function<void(Rank&)>& body) {
  harness::World& world = harness::world();
  world.run([&](int rank) {
    hepComm_t comm = nullptr;
    ASSERT_HEP(world.create_comm(rank, config, &comm)) << "rank " << rank;
    harness::Stream stream(world.backend());
    Rank self{rank, comm, stream};
    world.barrier(rank);
    body(self);
    stream.synchronize();
    world.barrier(rank);
    EXPECT_HEP(hepCommDestroy(comm)) << "rank " << rank;
  });
}

void expect_mentions(const std::string& sentence, const Mentions& mentions) {
  for (const std::string& mention : mentions) {
    EXPECT_NE(sentence.find(mention), std::string::npos)
        << "\"" << sentence << "\" does not mention " << mention;
  }
}

void expect_refused(const std::string& what, hepResult_t actual, hepResult_t expected,
                    const Mentions& mentions) {
  const std::string sentence = hepGetLastError();
  EXPECT_EQ(actual, expected) << what << ": " << sentence;
  EXPECT_FALSE(sentence.empty()) << what;
  expect_mentions(sentence, mentions);
}

hepResult_t async_error(const Rank& rank) {
  hepResult_t result = hepErrorInternal;
  EXPECT_HEP(hepCommGetAsyncError(rank.comm, &result));
  return result;
}

void expect_working(Rank& rank, const hepConfig_t& config) {
  Random random(7);
  const int num_ranks = harness::world().num_ranks();
  JobBuilder builder(num_ranks, config.num_experts, config.hidden, random);
  const int routing = builder.add_routing(8);
  const int update = builder.add_update(routing, config.max_top_k, hepIndexInt32,
                                        std::vector<int64_t>(num_ranks, 5));
  const int dispatch = builder.add_dispatch(update, hepLayoutExpertMajor, true);
  builder.add_combine(update, hepLayoutExpertMajor, hepWeightsDispatched, dispatch);
  const Job job = builder.finish("a round that must work");
  JobRun run(job, rank);
  rank.barrier();
  if (run.issue()) run.verify();
  rank.barrier();
}
