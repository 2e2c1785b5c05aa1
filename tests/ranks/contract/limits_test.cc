// SPDX-License-Identifier: Apache-2.0
// The largest and the smallest shapes of the contract: experts, top-k, rows, tokens, ranks.
#include <string>
#include <vector>

#include "ranks/job.h"
#include "ranks/support.h"

namespace {

using harness::world;

constexpr int kMaxRanks = 72, kMaxExperts = 4096, kMaxTopK = 32, kMaxTokens = 65536;
constexpr int kMaxScaleBytes = 16384;

// The most experts, up to `most`, that the ranks can share.
int experts(int most) { return most / world().num_ranks() * world().num_ranks(); }

std::vector<int64_t> same_tokens(int64_t tokens) {
  return std::vector<int64_t>(world().num_ranks(), tokens);
}

hepConfig_t config_of(int hidden, int max_tokens) {
  hepConfig_t config = small_config();
  config.hidden = hidden;
  config.max_tokens = max_tokens;
  config.heap_bytes = 0;
  return config;
}

// --------------------------------------------------------------------------------------- ranks

TEST(Limits, AConfigFor72RanksIsLegalAndHasASize) {
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.max_tokens = kMaxTokens;
  config.hidden = 32768;
  config.num_experts = kMaxExperts / kMaxRanks * kMaxRanks;
  config.max_top_k = kMaxTopK;
  config.scale_bytes = kMaxScaleBytes;
  EXPECT_HEP(hepConfigCheck(&config, kMaxRanks));
  hepWorkspace_t size = HEP_WORKSPACE_INITIALIZER;
  EXPECT_HEP(hepWorkspaceSize(&config, kMaxRanks, &size));
  const uint64_t row = 65536, tokens = kMaxTokens;
  EXPECT_GE(size.token_bytes, tokens * (row + kMaxScaleBytes + 4 * kMaxTopK));
  EXPECT_GE(size.partial_bytes, tokens * kMaxTopK * row);
  EXPECT_GE(size.record_bytes, 2 * kMaxRanks * tokens * (16 + 8 * kMaxTopK));
  EXPECT_EQ(size.total_bytes, size.token_bytes + size.partial_bytes + size.record_bytes +
                                  size.signal_bytes + size.heap_bytes);
  config.num_experts = kMaxRanks + 1;
  EXPECT_EQ(hepConfigCheck(&config, kMaxRanks + 1), hepErrorInvalidArgument);
  expect_mentions(hepGetLastError(), {"73", "72"});
}

// ---------------------------------------------------------------------------- experts and top-k

TEST(Limits, ManyExpertsWorkWhetherAMultipleOfFourOrNot) {
  for (const int num_experts : {experts(1024), experts(1031), experts(kMaxExperts)}) {
    hepConfig_t config = config_of(64, 40);
    config.num_experts = num_experts;
    config.max_top_k = kMaxTopK;
    Random random(options().seed + 51);
    JobBuilder builder(world().num_ranks(), config, random);
    for (const hepIndexType_t type : {hepIndexInt32, hepIndexMap}) {
      const int update =
          builder.add_update(builder.add_routing(8), kMaxTopK, type, same_tokens(40));
      const int dispatch = builder.add_dispatch(update, hepLayoutExpertMajor, true);
      builder.add_combine(update, hepLayoutExpertMajor, hepWeightsDispatched, dispatch);
    }
    run_job(config, builder.finish(std::to_string(num_experts) + " experts"));
  }
}

TEST(Limits, ATokenMaySelectTheLastExpert32Times) {
  hepConfig_t config = config_of(64, 20);
  config.num_experts = experts(kMaxExperts);
  config.max_top_k = kMaxTopK;
  RoutingPattern pattern;
  pattern.absent_percent = 0;
  pattern.hot_percent = 100;
  pattern.first_hot = config.num_experts - 1;
  Random random(options().seed + 53);
  JobBuilder builder(world().num_ranks(), config, random);
  const int update = builder.add_update(builder.add_routing(128), kMaxTopK, hepIndexInt64,
                                        same_tokens(20), pattern);
  for (const hepLayout_t layout : {hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded}) {
    const int dispatch = builder.add_dispatch(update, layout, true);
    if (layout == hepLayoutExpertPadded)  // of which every expert has a block
      for (int64_t& capacity : builder.dispatch(dispatch).capacity) capacity = 50;
    const int combine = builder.add_combine(update, layout, hepWeightsDispatched, dispatch);
    builder.combine(combine).capacity = builder.dispatch(dispatch).capacity;
    builder.combine(combine).has_gradients = true;
  }
  run_job(config, builder.finish("one expert 32 times"));
}

// ---------------------------------------------------------------------------------------- rows

TEST(Limits, RowsOf64KiBAndOf16BytesTravel) {
  if (world().num_ranks() > 8) GTEST_SKIP() << "too much memory with so many ranks";
  for (const int hidden : {32768, 8}) {
    const hepConfig_t config = config_of(hidden, 9);
    Random random(options().seed + 50);
    JobBuilder builder(world().num_ranks(), config, random);
    const int update = builder.add_update(builder.add_routing(1), 4, hepIndexInt32, same_tokens(9));
    builder.add_dispatch(update, hepLayoutFlat, true);
    builder.add_combine(update, hepLayoutExpertMajor, hepWeightsRow);
    run_job(config, builder.finish("hidden " + std::to_string(hidden)));
  }
}

// 64 KiB on the way there are 65536 elements, which are 128 KiB before, and 256 KiB on the way
// back.
TEST(Limits, LongerRowsAreQuantisedTo64KiBAndCombinedInFloat32) {
  if (world().num_ranks() > 8) GTEST_SKIP() << "too much memory with so many ranks";
  hepConfig_t config = config_of(65536, 5);
  config.type = hepTypeFloat8E4M3;
  config.combine_type = config.partial_type = hepTypeFloat32;
  config.scale_bytes = kMaxScaleBytes;
  Random random(options().seed + 54);
  JobBuilder builder(world().num_ranks(), config, random);
  const int update = builder.add_update(builder.add_routing(1), 4, hepIndexInt32, same_tokens(5));
  Dispatch& dispatch = builder.dispatch(builder.add_dispatch(update, hepLayoutExpertMajor, true));
  dispatch.quantize = hepQuantizeFloat32;
  dispatch.scale_element_bytes = 4;
  builder.add_combine(update, hepLayoutExpertMajor, hepWeightsRow);
  run_job(config, builder.finish("hidden 65536"));
}

TEST(Limits, ScalesOf16KiBTravelBesideTheSmallestRows) {
  hepConfig_t config = config_of(16, 9);
  config.type = hepTypeBytes;
  config.scale_bytes = kMaxScaleBytes;
  Random random(options().seed + 55);
  JobBuilder builder(world().num_ranks(), config, random);
  const int update = builder.add_update(builder.add_routing(8), 4, hepIndexInt32, same_tokens(9));
  for (const int element_bytes : {0, 4}) {
    Dispatch& dispatch =
        builder.dispatch(builder.add_dispatch(update, hepLayoutExpertMajor, false));
    dispatch.has_scales = true;
    dispatch.scale_element_bytes = element_bytes;
  }
  run_job(config, builder.finish("16 KiB of scales"));
}

// -------------------------------------------------------------------------------------- tokens

TEST(Limits, OneRankMayHave65536TokensAndTheOthersNone) {
  if (world().num_ranks() > 8) GTEST_SKIP() << "too much memory with so many ranks";
  hepConfig_t config = config_of(16, kMaxTokens);
  config.max_top_k = 2;
  std::vector<int64_t> tokens = same_tokens(0);
  tokens.back() = kMaxTokens;
  Random random(options().seed + 52);
  JobBuilder builder(world().num_ranks(), config, random);
  const int update = builder.add_update(builder.add_routing(1), 2, hepIndexInt32, tokens);
  const int dispatch = builder.add_dispatch(update, hepLayoutFlat, true);
  builder.add_combine(update, hepLayoutFlat, hepWeightsDispatched, dispatch);
  run_job(config, builder.finish("65536 tokens"));
}

TEST(Limits, EveryRankMaySend65536TokensToOneExpert) {
  if (world().num_ranks() > 8) GTEST_SKIP() << "too much memory with so many ranks";
  hepConfig_t config = config_of(8, kMaxTokens);
  config.max_top_k = 1;
  RoutingPattern pattern;
  pattern.absent_percent = 0;
  pattern.hot_percent = 100;
  pattern.first_hot = config.num_experts - 1;
  Random random(options().seed + 56);
  JobBuilder builder(world().num_ranks(), config, random);
  const int update = builder.add_update(builder.add_routing(1), 1, hepIndexInt32,
                                        same_tokens(kMaxTokens), pattern);
  builder.add_dispatch(update, hepLayoutExpertMajor, false);
  builder.add_combine(update, hepLayoutFlat, hepWeightsNone);
  run_job(config, builder.finish("65536 tokens on each rank"));
}

TEST(Limits, SomeRanksOrAllMayHaveNoTokens) {
  hepConfig_t config = config_of(64, 30);
  config.type = hepTypeFloat8E4M3;
  config.scale_bytes = 4;
  std::vector<int64_t> all_but_the_first = same_tokens(30);
  all_but_the_first[0] = 0;
  std::vector<int64_t> only_the_first = same_tokens(0);
  only_the_first[0] = 30;
  Random random(options().seed + 57);
  JobBuilder builder(world().num_ranks(), config, random);
  for (const std::vector<int64_t>& tokens : {same_tokens(0), all_but_the_first, only_the_first}) {
    for (const hepIndexType_t type : {hepIndexInt32, hepIndexMap}) {
      const int update = builder.add_update(builder.add_routing(16), 4, type, tokens);
      for (const hepLayout_t layout :
           {hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded}) {
        const int dispatch = builder.add_dispatch(update, layout, true);
        builder.dispatch(dispatch).quantize = hepQuantizeFloat32;
        const int combine = builder.add_combine(update, layout, hepWeightsDispatched, dispatch);
        builder.combine(combine).has_gradients = true;
      }
    }
  }
  run_job(config, builder.finish("no tokens"));
}

}  // namespace
