// SPDX-License-Identifier: Apache-2.0
// Whatever the shape and the routing, every output byte is the one that the contract names. Random
// cases; the seed and the number of a case, which a failure prints, bring it back.
#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include "job.h"
#include "support.h"

namespace {

constexpr int kCasesPerComm = 10;
constexpr int kHeapBatches = 6;  // of tokens, that the heap holds

// The shape of a group of cases, which share a communicator.
hepConfig_t random_config(Random& random, int num_ranks) {
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  const int most = std::max(1, (random.chance(10) ? 256 : 64) / num_ranks);
  config.num_experts = num_ranks * static_cast<int>(random.between(1, most));
  config.max_top_k =
      static_cast<int>(random.chance(10) ? random.between(17, 32) : random.between(1, 16));
  config.hidden = random.chance(5) ? 7168 : random.pick({8, 16, 24, 64, 136, 512, 1024});
  config.max_tokens =
      static_cast<int>(random.chance(20) ? random.between(1, 8) : random.between(1, 300));
  config.heap_bytes = kHeapBatches * (int64_t{config.max_tokens} * config.hidden * 2 + 256);
  config.timeout_ms = kTimeoutMs;
  config.sm_budget = random.pick({0, 4, 8, 13});
  if (random.chance(50)) {
    config.routing_threads = random.pick({0, 64, 128, 512});
    config.routing_blocks = random.pick({0, 1, 2, 3});
    config.dispatch_stages = random.pick({0, 2, 3, 5});
    config.dispatch_blocks = random.pick({0, 1, 3});
    config.combine_load_stages = random.pick({0, 2, 3});
    config.combine_store_stages = random.pick({0, 2, 4});
    config.combine_blocks = random.pick({0, 2, 3, 4});
  }
  return config;
}

std::vector<int64_t> random_tokens(Random& random, int num_ranks, int max_tokens) {
  const int zero_percent = random.pick({0, 15, 50, 100, 0, 15});
  std::vector<int64_t> tokens;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const int64_t some = random.chance(15) ? max_tokens : random.between(0, max_tokens);
    tokens.push_back(random.chance(zero_percent) ? 0 : some);
  }
  return tokens;
}

Taste random_taste(Random& random, int num_experts, int num_ranks) {
  Taste taste;
  taste.absent_percent = random.pick({0, 0, 10, 50, 95, 100, 0, 10});
  taste.distinct = random.chance(50);
  if (random.chance(30)) {
    taste.hot_percent = random.pick({50, 90, 100});
    const bool rank_is_hot = random.chance(50);
    taste.num_hot = rank_is_hot ? num_experts / num_ranks : 1;
    taste.first_hot =
        static_cast<int>(random.between(0, num_experts / taste.num_hot - 1)) * taste.num_hot;
  }
  return taste;
}

// Exact, ample, too small, or none at all.
int64_t random_capacity(Random& random, int64_t needed) {
  const int kind = static_cast<int>(random.between(0, 9));
  if (kind < 5) return needed;
  if (kind < 7) return needed + random.between(1, 40);
  if (kind < 9) return random.between(0, needed);
  return 0;
}

// On which ranks so many rows lie in the heap, as far as it has room left.
std::vector<char> random_heap_use(Random& random, const std::vector<int64_t>& rows, int hidden,
                                  int64_t* heap_left) {
  const int64_t bytes = *std::max_element(rows.begin(), rows.end()) * hidden * 2 + 256;
  const bool heap = random.chance(40) && bytes <= *heap_left;
  if (heap) *heap_left -= bytes;
  const bool all = random.chance(50);
  std::vector<char> uses;
  for (size_t rank = 0; rank < rows.size(); ++rank)
    uses.push_back(heap && (all || random.chance(70)));
  return uses;
}

void vary(Random& random, Dispatch* dispatch) {
  dispatch->x.special = random.chance(25);
  dispatch->extras = random.chance(75);
  for (size_t rank = 0; rank < dispatch->capacity.size(); ++rank) {
    dispatch->capacity[rank] = random_capacity(random, dispatch->capacity[rank]);
    dispatch->gather_capacity[rank] = dispatch->layout == hepLayoutFlat
                                          ? random_capacity(random, dispatch->gather_capacity[rank])
                                          : 0;
  }
}

// Several routings at once; each is updated, and serves dispatches and combines, in any order.
Job random_job(Random& random, const hepConfig_t& config, int num_ranks, const std::string& name) {
  JobBuilder builder(num_ranks, config.num_experts, config.hidden, random);
  // By routing: its latest update and dispatch with weights, and that update's tokens.
  std::vector<int> current, weighted;
  std::vector<std::vector<int64_t>> tokens;
  std::ostringstream shape;
  int64_t heap_left = config.heap_bytes;
  const int num_routings = static_cast<int>(random.between(1, 3));
  const auto update = [&](int routing) {
    const int top_k = static_cast<int>(random.between(1, config.max_top_k));
    tokens[routing] = random_tokens(random, num_ranks, config.max_tokens);
    current[routing] =
        builder.add_update(routing, top_k, random.pick({hepIndexInt32, hepIndexInt64}),
                           tokens[routing], random_taste(random, config.num_experts, num_ranks));
    builder.update(current[routing]).query = random.chance(40);
    weighted[routing] = -1;
    shape << " K=" << top_k;
  };
  for (int routing = 0; routing < num_routings; ++routing) {
    const int alignment = random.pick({1, 8, 16, 32, 64, 128});
    builder.add_routing(alignment);
    current.push_back(-1);
    weighted.push_back(-1);
    tokens.emplace_back();
    shape << " alignment=" << alignment;
    update(routing);
  }
  const int steps = static_cast<int>(random.between(2, 6));
  for (int step = 0; step < steps; ++step) {
    const int routing = static_cast<int>(random.between(0, num_routings - 1));
    const hepLayout_t layout = random.pick({hepLayoutFlat, hepLayoutExpertMajor});
    if (random.chance(10)) update(routing);
    if (random.chance(50)) {
      const bool has_weights = random.chance(60);
      const int dispatch = builder.add_dispatch(current[routing], layout, has_weights);
      vary(random, &builder.dispatch(dispatch));
      builder.dispatch(dispatch).x_in_heap =
          random_heap_use(random, tokens[routing], config.hidden, &heap_left);
      if (has_weights) weighted[routing] = dispatch;
    } else {
      hepWeightMode_t mode = random.pick({hepWeightsNone, hepWeightsDispatched, hepWeightsRow});
      if (mode == hepWeightsDispatched && weighted[routing] < 0) mode = hepWeightsNone;
      Combine& combine =
          builder.combine(builder.add_combine(current[routing], layout, mode, weighted[routing]));
      combine.y.special = random.chance(25);
      for (int64_t& capacity : combine.capacity) capacity = random_capacity(random, capacity);
      combine.y_in_heap = random_heap_use(random, combine.capacity, config.hidden, &heap_left);
    }
  }
  return builder.finish(name + shape.str());
}

std::string describe(int number, const hepConfig_t& config) {
  std::ostringstream text;
  text << "--seed " << options().seed << " --case " << number << " (E=" << config.num_experts
       << " H=" << config.hidden << " max_tokens=" << config.max_tokens
       << " max_top_k=" << config.max_top_k << ")";
  return text.str();
}

TEST(RandomCases, EveryOutputByteIsTheOracles) {
  harness::World& world = harness::world();
  const int only = options().only_case;
  const int num_cases = std::max(options().cases, only + 1);
  for (int first = 0; first < num_cases; first += kCasesPerComm) {
    const int last = std::min(first + kCasesPerComm, num_cases) - 1;
    if (only >= 0 && (only < first || only > last)) continue;

    Random of_group(options().seed * 1000003 + first);
    const hepConfig_t config = random_config(of_group, world.num_ranks());
    std::vector<Job> jobs;
    for (int number = first; number <= last; ++number) {
      if (only >= 0 && number != only) continue;
      Random of_case(options().seed * 1000003 + number + (uint64_t{1} << 60));
      jobs.push_back(random_job(of_case, config, world.num_ranks(), describe(number, config)));
    }
    run_ranks(config, [&](Rank& rank) {
      for (const Job& job : jobs) {
        JobRun run(job, rank);
        rank.barrier();
        ASSERT_TRUE(run.issue()) << job.name;
        rank.stream.synchronize();
        rank.barrier();
        run.verify();
      }
    });
    // All processes stop together.
    if (world.max_over_processes(testing::Test::HasFailure()) != 0) break;
  }
}

}  // namespace
