// SPDX-License-Identifier: Apache-2.0
// A call is made for T and K of the update that was called last. The replay of a graph can have
// executed another update since, or a captured one was never replayed: the device notices, before a
// row moves.
#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "ranks/spoilt_batch.h"
#include "ranks/support.h"

namespace {

using harness::world;

struct Sizes {
  int num_tokens, top_k;
};
constexpr Sizes kExecuted{8, 4};
constexpr Sizes kOtherTokens{4, 4}, kOtherTopK{8, 2};

constexpr int64_t kRowsOfExpert = 8;
constexpr int kCanary = 0x5a;

class ExecutedUpdate : public testing::Test {
 protected:
  void SetUp() override {
    if (world().backend() != hepBackendCuda) GTEST_SKIP() << "the host backend has no graphs";
  }
};

class ExecutedUpdateOfOtherSizes : public ExecutedUpdate,
                                   public testing::WithParamInterface<Sizes> {};

// A batch of the larger sizes, with room for all its rows, in buffers full of canaries.
struct LargeBatch : Batch {
  LargeBatch(Rank& rank, const hepConfig_t& config, hepLayout_t layout)
      : Batch(rank, config), bytes(kRowsOfAll * config.hidden * 2), out(backend, bytes) {
    dispatch.layout = combine.layout = layout;
    dispatch.capacity = combine.capacity = layout == hepLayoutExpertPadded ? kRowsOfExpert : 32;
    rows = harness::Buffer(backend, bytes);
    dispatch.rows = rows.data();
    combine.y = rows.data();
    combine.out = out.data();
    rows.fill(kCanary);
    out.fill(kCanary);
    numbers.fill(kCanary);
    indices.fill(0);
  }

  hepResult_t update(Sizes sizes) {
    return harness::update_routing(routing.get(), indices.data(), sizes.num_tokens, sizes.top_k,
                                   hepIndexInt32, self.stream.get());
  }

  void expect_canaries() {
    for (const harness::Buffer* buffer : {&rows, &out, &numbers}) {
      std::vector<char> found(buffer->bytes());
      buffer->download(found.data(), found.size());
      EXPECT_EQ(std::count(found.begin(), found.end(), kCanary),
                static_cast<int64_t>(found.size()));
    }
  }

  static constexpr int64_t kRowsOfAll = 64;
  const size_t bytes;
  harness::Buffer out;
};

using Call = std::function<hepResult_t(LargeBatch&)>;

// A rank that called earlier may have failed, and told of it already.
void issue(const Call& call, LargeBatch& batch) {
  const hepResult_t result = call(batch);
  EXPECT_TRUE(result == hepSuccess || result == hepErrorInvalidUsage) << hepGetLastError();
}

hepResult_t call_dispatch(LargeBatch& batch) {
  return hepDispatch(batch.routing.get(), &batch.dispatch, batch.self.stream.get());
}
hepResult_t call_combine(LargeBatch& batch) {
  return hepCombine(batch.routing.get(), &batch.combine, batch.self.stream.get());
}
hepResult_t call_combine_with_gradients(LargeBatch& batch) {
  batch.combine.row_gradients = batch.numbers.as<float>();
  batch.combine.gradients = batch.numbers.as<float>() + 512;
  return call_combine(batch);
}

// `arrange` leaves the device with an update of kExecuted and a call of `called` enqueued.
void expect_noticed(hepLayout_t layout, Sizes called, const std::string& operation,
                    const std::function<void(LargeBatch&)>& arrange) {
  const hepConfig_t config = small_config();
  run_ranks(config, [&](Rank& self) {
    LargeBatch batch(self, config, layout);
    self.barrier();  // to allocate may wait for kernels on the device
    arrange(batch);
    self.stream.synchronize();
    EXPECT_EQ(async_error(self), hepErrorInvalidUsage);
    const auto words = [](Sizes sizes) {
      return std::to_string(sizes.num_tokens) + " tokens and top_k " + std::to_string(sizes.top_k);
    };
    expect_mentions(hepGetLastError(), {operation + " 1", words(called), words(kExecuted)});
    hepFailure_t failure = HEP_FAILURE_INITIALIZER;
    EXPECT_HEP(hepCommGetFailure(self.comm, &failure));
    EXPECT_EQ(failure.result, hepErrorInvalidUsage);
    EXPECT_GE(failure.missing_rank, 0);  // any: the calls of all are wrong
    self.barrier();
    batch.expect_canaries();
  });
}

// The update of other sizes is captured, which makes it the latest that was called, and never
// replayed.
void expect_eager_call_noticed(hepLayout_t layout, Sizes called, const std::string& operation,
                               const Call& call) {
  expect_noticed(layout, called, operation, [&](LargeBatch& batch) {
    ASSERT_HEP(batch.update(kExecuted));
    harness::Graph graph;
    graph.begin(batch.self.stream);
    EXPECT_HEP(batch.update(called));
    graph.end(batch.self.stream);
    batch.self.barrier();
    issue(call, batch);
    batch.self.stream.synchronize();
  });
}

// The call is captured after an update of its sizes, and replayed after one of others.
void expect_replay_noticed(hepLayout_t layout, Sizes called, const std::string& operation,
                           const Call& call) {
  expect_noticed(layout, called, operation, [&](LargeBatch& batch) {
    ASSERT_HEP(batch.update(called));
    harness::Graph graph;
    graph.begin(batch.self.stream);
    EXPECT_HEP(call(batch));
    graph.end(batch.self.stream);
    ASSERT_HEP(batch.update(kExecuted));
    batch.self.stream.synchronize();
    batch.self.barrier();
    graph.launch(batch.self.stream);
    batch.self.stream.synchronize();
  });
}

void expect_noticed_both_ways(Sizes called, const std::string& operation, const Call& call) {
  for (const hepLayout_t layout : {hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded}) {
    expect_eager_call_noticed(layout, called, operation, call);
    expect_replay_noticed(layout, called, operation, call);
  }
}

TEST_P(ExecutedUpdateOfOtherSizes, FailsADispatch) {
  expect_noticed_both_ways(GetParam(), "dispatch", call_dispatch);
}

TEST_P(ExecutedUpdateOfOtherSizes, FailsACombine) {
  expect_noticed_both_ways(GetParam(), "combine", call_combine);
}

TEST_P(ExecutedUpdateOfOtherSizes, FailsACombineWithGradients) {
  expect_noticed_both_ways(GetParam(), "combine", call_combine_with_gradients);
}

INSTANTIATE_TEST_SUITE_P(Sizes, ExecutedUpdateOfOtherSizes,
                         testing::Values(kOtherTokens, kOtherTopK),
                         [](const testing::TestParamInfo<Sizes>& info) {
                           return info.param.num_tokens != kExecuted.num_tokens ? "OtherTokens"
                                                                                : "OtherTopK";
                         });

// A second half is for the sizes of the first half that was executed. That has sent all that the
// second needs, so that no graph waits for another.
TEST_F(ExecutedUpdate, OfOtherSizesFailsTheSecondHalfOfADispatch) {
  hepConfig_t config = small_config();
  config.low_latency_tokens = kExecuted.num_tokens;
  hepRoutingConfig_t place = HEP_ROUTING_CONFIG_INITIALIZER;
  place.mode = hepModeLowLatency;
  run_ranks(config, [&](Rank& self) {
    Batch batch(self, config, &place);
    batch.update_in_the_dispatch();
    harness::Graph sends[2], receives[2];
    for (const int graph : {0, 1}) {
      batch.choice.num_tokens = graph == 0 ? kExecuted.num_tokens : kOtherTokens.num_tokens;
      sends[graph].begin(self.stream);
      EXPECT_HEP(hepDispatchSend(batch.routing.get(), &batch.dispatch, self.stream.get()));
      sends[graph].end(self.stream);
      receives[graph].begin(self.stream);
      EXPECT_HEP(hepDispatchReceive(batch.routing.get(), self.stream.get()));
      receives[graph].end(self.stream);
    }
    self.barrier();
    sends[0].launch(self.stream);
    self.stream.synchronize();
    self.barrier();
    receives[1].launch(self.stream);
    self.stream.synchronize();
    EXPECT_EQ(async_error(self), hepErrorInvalidUsage) << hepGetLastError();
    expect_mentions(hepGetLastError(), {"dispatch 1", "4 tokens", "8 tokens"});
    self.barrier();
  });
}

// What was captured meanwhile makes no difference.
TEST_F(ExecutedUpdate, OfTheSameSizesServesACallAfterACapture) {
  const hepConfig_t config = small_config();
  run_ranks(config, [&](Rank& self) {
    LargeBatch batch(self, config, hepLayoutFlat);
    self.barrier();
    ASSERT_HEP(batch.update(kExecuted));
    harness::Graph graph;
    graph.begin(self.stream);
    EXPECT_HEP(batch.update(kOtherTopK));
    graph.end(self.stream);
    ASSERT_HEP(batch.update(kExecuted));
    EXPECT_HEP(call_dispatch(batch));
    self.stream.synchronize();
    EXPECT_EQ(async_error(self), hepSuccess) << hepGetLastError();
    self.barrier();
  });
}

}  // namespace
