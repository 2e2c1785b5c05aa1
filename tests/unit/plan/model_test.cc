// SPDX-License-Identifier: Apache-2.0
// The blocks that the plan chooses, beside a sweep over all counts. The sweep computes the time by
// itself, from the same rates.
#include "backend/cuda/model.h"

#include <cmath>
#include <functional>
#include <string>

#include "backend/cuda/plan.h"
#include "config/lanes.h"
#include "protocol/data_type.h"
#include "unit/config/config_fixture.h"

namespace hep {
namespace {

using Model = Config;

constexpr int kSms = 132;
constexpr double kTolerance = 1e-9;  // of sums in another order

struct Case {
  hepMode_t mode;
  int32_t layout, alignment, type;
  int tokens, hidden, top_k, ranks;

  int local_experts() const { return 8; }
  int row_bytes() const { return hidden * element_bytes(type); }
  // FP8 rows come with a float for each 128 elements.
  int scale_bytes() const { return element_bytes(type) == 1 ? hidden / 128 * 4 : 0; }

  hepConfig_t config() const {
    hepConfig_t config = HEP_CONFIG_INITIALIZER;
    config.type = type;
    config.max_tokens = tokens;
    config.hidden = hidden;
    config.num_experts = ranks * local_experts();
    config.max_top_k = top_k;
    config.scale_bytes = scale_bytes();
    if (mode == hepModeLowLatency) config.low_latency_tokens = tokens;
    return config;
  }
  std::string text() const {
    return "mode " + std::to_string(mode) + ", layout " + std::to_string(layout) + ", alignment " +
           std::to_string(alignment) + ", type " + std::to_string(type) + ", tokens " +
           std::to_string(tokens) + ", hidden " + std::to_string(hidden) + ", top-k " +
           std::to_string(top_k) + ", ranks " + std::to_string(ranks);
  }
};

void for_each_case(const std::function<void(const Case&)>& body) {
  struct Layout {
    int32_t layout, alignment;
  };
  for (const hepMode_t mode : {hepModeThroughput, hepModeLowLatency})
    for (const auto& [layout, alignment] :
         {Layout{hepLayoutFlat, 1}, Layout{hepLayoutExpertMajor, 1},
          Layout{hepLayoutExpertMajor, 128}, Layout{hepLayoutExpertPadded, 1}})
      for (const int32_t type : {hepTypeBfloat16, hepTypeFloat8E4M3})
        for (const int tokens : {1, 8, 128, 1024, 4096, 16384})
          for (const int hidden : {2048, 7168, 16384})
            for (const int top_k : {1, 2, 8, 16})
              for (const int ranks : {1, 2, 3, 8, 64, 72})
                body({mode, layout, alignment, type, tokens, hidden, top_k, ranks});
}

Plan plan_of(const Case& wanted, const Profile& profile = kH200, int sm_budget = 0) {
  hepConfig_t config = wanted.config();
  config.sm_budget = sm_budget;
  const std::vector<Lane> lanes = make_lanes(resolved_config(config, wanted.ranks), wanted.ranks);
  return make_plan(wanted.mode == hepModeLowLatency ? lanes.back() : lanes.front(),
                   {&profile, kSms});
}

// ------------------------------------------------------------------------------------- the sweep

// In microseconds: bytes over GB/s.
double us(double bytes, double rate) { return bytes / rate / 1000; }

double longest_of(double a, double b, double c) {
  return std::pow(std::pow(a, 8) + std::pow(b, 8) + std::pow(c, 8), 1.0 / 8);
}

// Ranks that a token selects on average: those that at least one of its choices hits.
double hit_ranks(const Case& c) {
  double missed = 1;
  for (int k = 0; k < c.top_k; ++k) missed *= (c.ranks - 1.0) / c.ranks;
  return c.ranks * (1 - missed);
}

double largest_share(int items, int blocks) {
  return static_cast<double>((items + blocks - 1) / blocks) / items;
}

double dispatch_time(const Case& c, const Profile& p, int blocks) {
  const double row = c.row_bytes() + c.scale_bytes();
  const double received = c.tokens * hit_ranks(c);
  double written = received;
  if (c.layout != hepLayoutFlat) written = double{1} * c.tokens * c.top_k;
  if (c.layout == hepLayoutExpertMajor) written += c.local_experts() * (c.alignment - 1) / 2.0;
  const double remote = received * (c.ranks - 1) / c.ranks;
  const bool low_latency = c.mode == hepModeLowLatency;
  const int items =
      low_latency ? c.ranks * c.tokens : static_cast<int>(std::ceil(received - kTolerance));
  const double ports =
      largest_share(items, blocks) *
      std::max(us((received + written) * row, p.port_rate), us(written * row, p.store_rate));
  const double links = us(remote * row, p.link_rate);
  if (low_latency) return p.low_latency_us + p.choices_us / blocks + ports + links;
  return p.dispatch_us + longest_of(ports, links,
                                    us(received * row, p.memory_read_rate) +
                                        us(written * row, p.memory_write_rate));
}

double combine_time(const Case& c, Sending sending, const Profile& p, int blocks) {
  const double row = 2.0 * c.hidden;  // BF16, as its partial sums
  const double remote = hit_ranks(c) * (c.ranks - 1) / c.ranks;
  double read = hit_ranks(c), written = 1;  // of a token
  if (sending != Sending::kNone) {
    read = remote + (c.layout == hepLayoutFlat ? hit_ranks(c) : c.top_k);
    written += remote;
  }
  const double bytes = c.tokens * row;
  const int tokens_of_block = c.tokens > p.few_tokens ? 16 : 2;  // at the same time
  const int items = (c.tokens + tokens_of_block - 1) / tokens_of_block;
  const double ports =
      largest_share(items, blocks) *
      std::max(us((read + written) * bytes, p.port_rate), us(written * bytes, p.store_rate));
  const double links = us(remote * bytes, p.link_rate);
  if (c.mode == hepModeLowLatency) return p.low_latency_us + ports + links;
  return p.combine_us + longest_of(ports, links,
                                   us(read * bytes, p.memory_read_rate) +
                                       us(written * bytes, p.memory_write_rate));
}

// The fewest blocks within 3 % of the best of `most`, and the same where a time that is at the
// limit but for rounding is past it.
struct Sweep {
  int fewest, fewest_but_for_rounding;

  Sweep(int most, const std::function<double(int)>& time) {
    double best = time(1);
    for (int blocks = 2; blocks <= most; ++blocks) best = std::min(best, time(blocks));
    fewest = fewest_but_for_rounding = 1;
    while (time(fewest) > 1.03 * best * (1 + kTolerance)) ++fewest;
    while (time(fewest_but_for_rounding) > 1.03 * best * (1 - kTolerance))
      ++fewest_but_for_rounding;
  }
};

void expect_fewest(int chosen, const Sweep& sweep, int least) {
  EXPECT_GE(chosen, std::max(sweep.fewest, least));
  EXPECT_LE(chosen, std::max(sweep.fewest_but_for_rounding, least));
}

DispatchWork dispatch_work(const Case& c, int tokens) {
  return {c.layout, tokens, c.top_k, c.alignment, c.row_bytes(), c.scale_bytes(), false};
}

CombineWork combine_work(const Case& c, Sending sending) {
  return {c.layout, c.tokens, c.top_k, c.hidden * 2, c.hidden * 2, sending};
}

std::vector<Sending> sendings_of(const Case& c) {
  if (c.layout != hepLayoutFlat) return {Sending::kSums};
  return {Sending::kNone, Sending::kRows, Sending::kSums};
}

// ------------------------------------------------------------------------------------- the tests

TEST_F(Model, DispatchTakesTheFewestBlocksWithinThreePercent) {
  for_each_case([](const Case& c) {
    SCOPED_TRACE(c.text());
    for (const Profile* profile : {&kH200, &kBlackwell}) {
      const Plan plan = plan_of(c, *profile);
      const Sweep sweep(64, [&](int blocks) { return dispatch_time(c, *profile, blocks); });
      expect_fewest(dispatch_blocks(plan, dispatch_work(c, c.tokens)), sweep, 1);
    }
  });
}

TEST_F(Model, CombineTakesTheFewestBlocksWithinThreePercent) {
  for_each_case([](const Case& c) {
    if (element_bytes(c.type) == 1) return;
    SCOPED_TRACE(c.text());
    for (const Profile* profile : {&kH200, &kBlackwell}) {
      const Plan plan = plan_of(c, *profile);
      for (const Sending sending : sendings_of(c)) {
        const Sweep sweep(64,
                          [&](int blocks) { return combine_time(c, sending, *profile, blocks); });
        expect_fewest(combine_blocks(plan, combine_work(c, sending)), sweep, 2);
        EXPECT_LE(combine_grid(plan, combine_work(c, sending)).blocks,
                  combine_blocks(plan, combine_work(c, sending)));
      }
    }
  });
}

TEST_F(Model, ABudgetIsAnUpperBound) {
  for_each_case([](const Case& c) {
    if (c.hidden != 7168 || c.tokens == 8) return;
    SCOPED_TRACE(c.text());
    int dispatch_before = 1, combine_before = 2;
    for (const int budget : {2, 3, 8, 16, 24, 48, 64, 100, 132}) {
      const Plan plan = plan_of(c, kH200, budget);
      const int dispatch = dispatch_blocks(plan, dispatch_work(c, c.tokens));
      const int combine = combine_blocks(plan, combine_work(c, Sending::kSums));
      EXPECT_LE(dispatch, budget);
      EXPECT_LE(combine, budget);
      // The best time within a larger budget is never longer.
      EXPECT_GE(dispatch, dispatch_before) << budget;
      EXPECT_GE(combine, combine_before) << budget;
      dispatch_before = dispatch, combine_before = combine;
    }
  });
}

TEST_F(Model, NoCallTakesMoreThanThePlanTells) {
  for_each_case([](const Case& c) {
    if (c.hidden != 7168) return;
    SCOPED_TRACE(c.text());
    const Plan plan = plan_of(c);
    for (const int tokens : {0, 1, c.tokens / 3, c.tokens})
      EXPECT_LE(dispatch_blocks(plan, dispatch_work(c, tokens)), plan.dispatch_blocks);
    for (const Sending sending : sendings_of(c))
      EXPECT_LE(combine_blocks(plan, combine_work(c, sending)), plan.combine_blocks);
    EXPECT_LE(most_blocks(plan), 64);
  });
}

// It may receive as much as the others.
TEST_F(Model, ARankWithoutTokensCountsAsOneWithAQuarter) {
  for_each_case([](const Case& c) {
    if (c.hidden != 7168) return;
    const Plan plan = plan_of(c);
    EXPECT_EQ(dispatch_blocks(plan, dispatch_work(c, 0)),
              dispatch_blocks(plan, dispatch_work(c, (c.tokens + 3) / 4)))
        << c.text();
  });
}

TEST_F(Model, MoreBlocksNeverTakeLonger) {
  for_each_case([](const Case& c) {
    if (c.hidden != 7168) return;
    const DispatchDemand demand{
        {c.mode == hepModeLowLatency, c.ranks, c.local_experts(), c.tokens, c.top_k},
        c.layout,
        c.alignment,
        c.row_bytes(),
        0};
    const Traffic traffic = traffic_of(demand, kH200);
    for (int blocks = 1; blocks < 132; ++blocks)
      EXPECT_GE(model_us(traffic, blocks, kH200), model_us(traffic, blocks + 1, kH200))
          << c.text() << ", " << blocks << " blocks";
  });
}

TEST_F(Model, AlignmentWantsMoreBlocksInASmallBatch) {
  const Case aligned{
      hepModeThroughput, hepLayoutExpertMajor, 128, hepTypeBfloat16, 512, 7168, 8, 2};
  const Plan plan = plan_of(aligned);
  Case unaligned = aligned;
  unaligned.alignment = 1;
  EXPECT_GT(dispatch_blocks(plan, dispatch_work(aligned, 512)),
            dispatch_blocks(plan, dispatch_work(unaligned, 512)));
}

TEST_F(Model, QuantisingWantsMoreBlocks) {
  const Case fp8{hepModeThroughput, hepLayoutFlat, 1, hepTypeFloat8E4M3, 4096, 7168, 8, 2};
  const Plan plan = plan_of(fp8);
  DispatchWork work = dispatch_work(fp8, 4096);
  const int forwarded = dispatch_blocks(plan, work);
  work.quantizes = true;
  EXPECT_GT(dispatch_blocks(plan, work), forwarded);
}

TEST_F(Model, AChoiceKeepsToTheSmsOfTheGpu) {
  const Case large{hepModeThroughput, hepLayoutExpertMajor, 1, hepTypeBfloat16, 4096, 7168, 8, 2};
  hepConfig_t config = large.config();
  const Lane lane = make_lanes(resolved_config(config, 2), 2).front();
  EXPECT_EQ(make_plan(lane, {&kH200, 20}).dispatch_blocks, 20);
  config.dispatch_blocks = 30;  // is taken as it is, and refused where the device has fewer
  const Lane fixed = make_lanes(resolved_config(config, 2), 2).front();
  EXPECT_EQ(make_plan(fixed, {&kH200, 20}).dispatch_blocks, 30);
}

}  // namespace
}  // namespace hep
