// SPDX-License-Identifier: Apache-2.0
// What only some calls have: overflow that is an error, maps that select too much, types that
// change from call to call on one routing.
#include <algorithm>
#include <string>
#include <vector>

#include "ranks/job.h"
#include "ranks/random/random_job.h"
#include "ranks/support.h"

namespace {

using harness::world;

std::vector<int64_t> same_tokens(int64_t tokens) {
  return std::vector<int64_t>(world().num_ranks(), tokens);
}

TEST(Formats, OverflowThatIsAnErrorNamesWhatWasNeededAndLeavesTheCommunicatorUsable) {
  const hepConfig_t config = small_config();
  for (const hepLayout_t layout : {hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded}) {
    Random random(options().seed + 40 + layout);
    JobBuilder builder(world().num_ranks(), config, random);
    RoutingPattern pattern;
    pattern.absent_percent = 0;
    const int update =
        builder.add_update(builder.add_routing(8), 4, hepIndexInt32, same_tokens(30), pattern);
    Dispatch& dispatch = builder.dispatch(builder.add_dispatch(update, layout, true));
    dispatch.overflow = hepOverflowError;
    const std::vector<int64_t> needed = dispatch.capacity;
    for (int64_t& capacity : dispatch.capacity) capacity -= 1;
    const Job job = builder.finish("overflow");
    run_ranks(config, [&](Rank& self) {
      JobRun run(job, self);
      self.barrier();
      ASSERT_TRUE(run.issue());
      run.verify();
      self.barrier();
      EXPECT_EQ(async_error(self), hepErrorOverflow);
      expect_mentions(hepGetLastError(), {"dispatch 1", std::to_string(needed[self.rank]),
                                          std::to_string(needed[self.rank] - 1)});
      self.barrier();
      JobRun again(job, self);
      self.barrier();
      ASSERT_TRUE(again.issue());
      again.verify();
    });
  }
}

// The lanes count their dispatches by themselves.
TEST(Formats, OverflowNamesTheLaneOfTheDispatchAndItsNumberThere) {
  hepConfig_t config = small_config();
  config.low_latency_tokens = 20;
  Random random(options().seed + 44);
  JobBuilder builder(world().num_ranks(), config, random);
  RoutingPattern pattern;
  pattern.absent_percent = 0;
  int updates[2];
  for (const int lane : {1, 2})
    updates[lane - 1] = builder.add_update(builder.add_routing(8, hepModeLowLatency, lane), 4,
                                           hepIndexInt32, same_tokens(20), pattern);
  for (const int update : {updates[0], updates[1], updates[1], updates[1]}) {
    Dispatch& dispatch = builder.dispatch(builder.add_dispatch(update, hepLayoutFlat, true));
    dispatch.overflow = hepOverflowError;
  }
  for (int64_t& capacity : builder.dispatch(3).capacity) capacity -= 1;
  const Job job = builder.finish("overflow on a lane");
  run_ranks(config, [&](Rank& self) {
    JobRun run(job, self);
    self.barrier();
    ASSERT_TRUE(run.issue());
    run.verify();
    EXPECT_EQ(async_error(self), hepErrorOverflow);
    expect_mentions(hepGetLastError(), {"dispatch 3 of low-latency lane 2"});
  });
}

TEST(Formats, TokensWhoseMapSelectsTooManyAreReportedAndKeepTheirFirst) {
  hepConfig_t config = small_config();
  config.num_experts = 4 * std::max(2, world().num_ranks());
  Random random(options().seed + 45);
  JobBuilder builder(world().num_ranks(), config, random);
  RoutingPattern pattern;
  pattern.excess_percent = 30;
  const int update =
      builder.add_update(builder.add_routing(1), 3, hepIndexMap, same_tokens(50), pattern);
  const int dispatch = builder.add_dispatch(update, hepLayoutExpertMajor, true);
  builder.add_combine(update, hepLayoutExpertMajor, hepWeightsDispatched, dispatch);
  const Job job = builder.finish("excess");
  run_ranks(config, [&](Rank& self) {
    JobRun run(job, self);
    self.barrier();
    ASSERT_TRUE(run.issue());
    run.verify();
    EXPECT_EQ(async_error(self), hepErrorInvalidArgument);
    expect_mentions(hepGetLastError(), {"map of token", "experts", "top_k"});
  });
}

// Training in FP8: quantised rows forward, BF16 gradients back, on one routing, in masked layout
// too.
TEST(Formats, ForwardInFp8AndBackwardInBf16ShareARouting) {
  hepConfig_t config = small_config();
  config.type = hepTypeFloat8E4M3;
  config.hidden = 272;
  config.scale_bytes = 12;
  config.partial_type = hepTypeFloat32;
  Random random(options().seed + 46);
  JobBuilder builder(world().num_ranks(), config, random);
  const int update = builder.add_update(builder.add_routing(16), 4, hepIndexInt64, same_tokens(40));
  for (const hepLayout_t layout : {hepLayoutExpertMajor, hepLayoutExpertPadded}) {
    const int forward = builder.add_dispatch(update, layout, true);
    builder.dispatch(forward).quantize = hepQuantizeFloat32;
    builder.dispatch(forward).scale_element_bytes = 4;
    builder.add_combine(update, layout, hepWeightsDispatched, forward);
    builder.dispatch(builder.add_dispatch(update, layout, false)).type = hepTypeBfloat16;
    Combine& backward = builder.combine(builder.add_combine(update, layout, hepWeightsNone));
    backward.has_gradients = true;
    backward.partial_type = hepTypeBfloat16;
  }
  run_job(config, builder.finish("FP8 forward, BF16 backward"));
}

TEST(Formats, EveryTypeThatFitsTravelsOnOneCommunicator) {
  hepConfig_t config = small_config();
  config.type = hepTypeFloat32;
  config.partial_type = hepTypeFloat32;
  config.scale_bytes = 1;
  Random random(options().seed + 47);
  JobBuilder builder(world().num_ranks(), config, random);
  const int update = builder.add_update(builder.add_routing(1), 4, hepIndexInt32, same_tokens(33));
  for (const hepDataType_t type : {hepTypeBfloat16, hepTypeFloat16, hepTypeFloat32,
                                   hepTypeFloat8E4M3, hepTypeFloat8E5M2, hepTypeBytes}) {
    Dispatch& dispatch = builder.dispatch(builder.add_dispatch(update, hepLayoutFlat, false));
    dispatch.type = type;
    dispatch.has_scales = true;
    dispatch.x.special = true;
  }
  for (const hepDataType_t type : {hepTypeBfloat16, hepTypeFloat16, hepTypeFloat32}) {
    for (const hepDataType_t partial_type : {hepTypeBfloat16, hepTypeFloat32}) {
      Combine& combine =
          builder.combine(builder.add_combine(update, hepLayoutExpertMajor, hepWeightsRow));
      combine.type = type;
      combine.partial_type = partial_type;
      combine.y.special = true;
    }
  }
  run_job(config, builder.finish("every type"));
}

// Scales that the copy engine can move come with the rows of a dispatch that updates its routing;
// here with rows that are dropped, and ranks that receive or have nothing.
TEST(Formats, ScalesComeWithLowLatencyRows) {
  const int num_ranks = world().num_ranks();
  hepConfig_t config = small_config();
  config.type = hepTypeFloat8E4M3;
  config.hidden = 512;
  config.scale_bytes = 16;
  config.low_latency_tokens = 40;
  config.heap_bytes = 4 << 20;
  Random random(options().seed + 81);
  JobBuilder builder(num_ranks, config, random);
  const int routing = builder.add_routing(16, hepModeLowLatency);
  int number = 0;
  for (const hepLayout_t layout : {hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded}) {
    for (const hepQuantization_t quantize : {hepQuantizeNone, hepQuantizeFloat32}) {
      for (const bool split : {false, true}) {
        std::vector<int64_t> tokens = same_tokens(40);
        if (num_ranks > 1) tokens[number % num_ranks] = 0;
        const int update = builder.add_update(routing, 4, hepIndexInt32, tokens);
        const int index = builder.add_dispatch(update, layout, true);
        Dispatch& dispatch = builder.dispatch(index);
        dispatch.quantize = quantize;
        dispatch.has_scales = quantize == hepQuantizeNone;
        dispatch.halves.split = split;
        dispatch.x_memory.assign(num_ranks, number % 2 == 0 ? kHeapMemory : kAnyMemory);
        dispatch.capacity[(number + 1) % num_ranks] /= 2;
        if (num_ranks > 2) dispatch.capacity[(number + 2) % num_ranks] = 0;
        builder.fold_update(index);
        ++number;
      }
    }
  }
  run_job(config, builder.finish("scales beside low-latency rows"));
}

// The peers of a rank whose outputs they could read wait for it, also if it has none.
TEST(Outputs, WhereTheyCouldBeReadThereNeedBeNone) {
  const int num_ranks = world().num_ranks();
  hepConfig_t config = small_config();
  config.timeout_ms = 5000;
  config.heap_bytes = 1 << 20;
  config.low_latency_tokens = 20;
  RoutingPattern nobody, last_rank;
  nobody.absent_percent = 100;
  last_rank.hot_percent = 100;
  last_rank.num_hot = config.num_experts / num_ranks;
  last_rank.first_hot = config.num_experts - last_rank.num_hot;
  Random random(options().seed + 82);
  JobBuilder builder(num_ranks, config, random);
  for (const hepMode_t mode : {hepModeThroughput, hepModeLowLatency}) {
    const int routing = builder.add_routing(1, mode);
    for (const RoutingPattern& pattern : {nobody, last_rank}) {
      const int update = builder.add_update(routing, 2, hepIndexInt32, same_tokens(20), pattern);
      Combine& combine =
          builder.combine(builder.add_combine(update, hepLayoutFlat, hepWeightsNone));
      combine.y_memory.assign(num_ranks, kHeapMemory);
      for (int64_t& capacity : combine.capacity) capacity += 4;
    }
  }
  run_job(config, builder.finish("outputs in place of which there are none"));
}

// Whatever the partial sums take on their way: y is measured by its own type.
TEST(Outputs, MayFillTheHeap) {
  constexpr int64_t kRows = 128;
  hepConfig_t config = small_config();
  config.partial_type = hepTypeFloat32;
  config.heap_bytes = kRows * config.hidden * 2;
  run_ranks(config, [&](Rank& self) {
    RoutingHandle routing;
    ASSERT_HEP(hepRoutingCreate(routing.out(), self.comm, nullptr));
    ASSERT_HEP(
        harness::update_routing(routing.get(), nullptr, 0, 1, hepIndexInt32, self.stream.get()));
    hepCombineArgs_t args = HEP_COMBINE_ARGS_INITIALIZER;
    args.partial_type = hepTypeFloat32;
    args.capacity = kRows;
    void* y = nullptr;
    ASSERT_HEP(hepMemAlloc(self.comm, config.heap_bytes, &y));
    args.y = y;
    EXPECT_HEP(hepCombine(routing.get(), &args, self.stream.get()));
    self.stream.synchronize();
    self.barrier();
    EXPECT_HEP(hepMemFree(self.comm, y));
  });
}

TEST(Formats, IndexTypesMayDifferFromRankToRank) {
  hepConfig_t config = small_config();
  config.low_latency_tokens = config.max_tokens;
  constexpr hepIndexType_t kTypes[] = {hepIndexInt32, hepIndexInt64, hepIndexMap};
  Random random(options().seed + 80);
  JobBuilder builder(world().num_ranks(), config, random);
  for (const hepMode_t mode : {hepModeThroughput, hepModeLowLatency}) {
    const int routing = builder.add_routing(8, mode);
    for (int first = 0; first < 3; ++first) {
      std::vector<hepIndexType_t> types;
      for (int rank = 0; rank < world().num_ranks(); ++rank)
        types.push_back(kTypes[(first + rank) % 3]);
      const int update = builder.add_update(routing, 3, types, same_tokens(40 - first));
      builder.update(update).query = first == 0;
      const int dispatch = builder.add_dispatch(update, hepLayoutExpertMajor, true);
      if (first == 1) builder.fold_update(dispatch);
      builder.add_combine(update, hepLayoutExpertMajor, hepWeightsDispatched, dispatch);
    }
  }
  run_job(config, builder.finish("index types that differ"));
}

}  // namespace
