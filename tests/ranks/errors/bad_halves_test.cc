// SPDX-License-Identifier: Apache-2.0
// What low-latency routings refuse: halves in a wrong order, batches that are too large, updates
// that make no sense in the call of a dispatch.
#include <string>

#include "ranks/spoilt_batch.h"
#include "ranks/support.h"

namespace {

constexpr hepResult_t kInvalid = hepErrorInvalidArgument;
constexpr hepResult_t kUsage = hepErrorInvalidUsage;

hepConfig_t low_latency_config() {
  hepConfig_t config = small_config();
  config.low_latency_tokens = 16;
  config.lanes = 2;
  return config;
}

hepRoutingConfig_t low_latency_lane(int lane) {
  hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
  config.mode = hepModeLowLatency;
  config.lane = lane;
  return config;
}

// Runs the body with a batch on low-latency lane 1, and sees that it works afterwards, and the
// communicator too.
void with_low_latency_batch(const std::function<void(Batch&)>& body) {
  const hepConfig_t config = low_latency_config();
  run_ranks(config, [&](Rank& self) {
    const hepRoutingConfig_t place = low_latency_lane(1);
    Batch batch(self, config, &place);
    ASSERT_HEP(batch.update());
    body(batch);
    self.barrier();
    EXPECT_HEP(batch.update());
    EXPECT_HEP(hepDispatchSend(batch.routing.get(), &batch.dispatch, self.stream.get()));
    self.barrier();
    EXPECT_HEP(hepDispatchReceive(batch.routing.get(), self.stream.get()));
    self.barrier();
    EXPECT_HEP(hepCombine(batch.routing.get(), &batch.combine, self.stream.get()));
    self.stream.synchronize();
    self.barrier();
    expect_working(self, config);
  });
}

TEST(BadHalves, SecondHalvesWantTheirFirst) {
  with_low_latency_batch([](Batch& batch) {
    const hepRouting_t routing = batch.routing.get();
    const hepStream_t stream = batch.self.stream.get();
    expect_refused("dispatch", hepDispatchReceive(routing, stream), kUsage,
                   {"hepDispatchReceive", "first half"});
    expect_refused("combine", hepCombineReceive(routing, stream), kUsage,
                   {"hepCombineReceive", "first half"});
    ASSERT_HEP(hepDispatchSend(routing, &batch.dispatch, stream));
    expect_refused("of a combine", hepCombineReceive(routing, stream), kUsage,
                   {"hepDispatchReceive"});
    batch.self.barrier();
    ASSERT_HEP(hepDispatchReceive(routing, stream));
    expect_refused("twice", hepDispatchReceive(routing, stream), kUsage, {"first half"});
    batch.self.barrier();
    ASSERT_HEP(hepCombineSend(routing, &batch.combine, stream));
    expect_refused("of a dispatch", hepDispatchReceive(routing, stream), kUsage,
                   {"hepCombineReceive"});
    batch.self.barrier();
    ASSERT_HEP(hepCombineReceive(routing, stream));
    expect_refused("twice", hepCombineReceive(routing, stream), kUsage, {"first half"});
  });
}

TEST(BadHalves, NothingOfTheirLaneComesBetween) {
  with_low_latency_batch([](Batch& batch) {
    hepRouting_t routing = batch.routing.get();
    const hepStream_t stream = batch.self.stream.get();
    const hepConfig_t config = low_latency_config();
    const hepRoutingConfig_t same = low_latency_lane(1), next = low_latency_lane(2);
    Batch neighbour(batch.self, config, &same), elsewhere(batch.self, config, &next);
    Batch throughput(batch.self, config);
    hepRoutingCounts_t counts = HEP_ROUTING_COUNTS_INITIALIZER;

    batch.update_in_the_dispatch();
    ASSERT_HEP(hepDispatchSend(routing, &batch.dispatch, stream));
    const Mentions open = {"dispatch of this routing", "low-latency lane 1", "hepDispatchReceive"};
    expect_refused("a first half", hepDispatchSend(routing, &batch.dispatch, stream), kUsage, open);
    expect_refused("a dispatch", hepDispatch(routing, &batch.dispatch, stream), kUsage, open);
    expect_refused("a combine", hepCombine(routing, &batch.combine, stream), kUsage, open);
    expect_refused("its first half", hepCombineSend(routing, &batch.combine, stream), kUsage, open);
    expect_refused("an update", batch.update(), kUsage, open);
    expect_refused("a query", hepRoutingQuery(routing, &counts, stream), kUsage, open);
    expect_refused("the end", hepRoutingDestroy(routing), kUsage, open);
    expect_refused("another routing's", neighbour.update(), kUsage, {"another routing"});
    batch.self.barrier();
    EXPECT_HEP(elsewhere.update());
    batch.self.barrier();
    EXPECT_HEP(throughput.update());
    batch.self.barrier();
    ASSERT_HEP(hepDispatchReceive(routing, stream));
    batch.self.barrier();
    EXPECT_HEP(neighbour.update());
    batch.self.stream.synchronize();
    batch.self.barrier();
    batch.dispatch.update = nullptr;
  });
}

TEST(BadHalves, RoutingsForThroughputHaveNone) {
  with_batch(low_latency_config(), [](Batch& batch) {
    const hepRouting_t routing = batch.routing.get();
    const hepStream_t stream = batch.self.stream.get();
    const Mentions mentions = {"hepModeLowLatency"};
    expect_refused("dispatch", hepDispatchSend(routing, &batch.dispatch, stream),
                   hepErrorUnsupported, mentions);
    expect_refused("its receive", hepDispatchReceive(routing, stream), hepErrorUnsupported,
                   mentions);
    expect_refused("combine", hepCombineSend(routing, &batch.combine, stream), hepErrorUnsupported,
                   mentions);
    expect_refused("its receive", hepCombineReceive(routing, stream), hepErrorUnsupported,
                   mentions);
  });
}

TEST(BadHalves, HandlesAndStructsAreChecked) {
  with_low_latency_batch([](Batch& batch) {
    const hepRouting_t routing = batch.routing.get();
    const hepStream_t stream = batch.self.stream.get();
    expect_refused("no routing", hepDispatchSend(nullptr, &batch.dispatch, stream), kInvalid,
                   {"routing"});
    expect_refused("no routing", hepDispatchReceive(nullptr, stream), kInvalid, {"routing"});
    expect_refused("no routing", hepCombineSend(nullptr, &batch.combine, stream), kInvalid,
                   {"routing"});
    expect_refused("no routing", hepCombineReceive(nullptr, stream), kInvalid, {"routing"});
    expect_refused("no arguments", hepDispatchSend(routing, nullptr, stream), kInvalid,
                   {"hepDispatchArgs_t"});
    expect_refused("no arguments", hepCombineSend(routing, nullptr, stream), kInvalid,
                   {"hepCombineArgs_t"});
    hepCombineArgs_t combine = batch.combine;
    combine.layout = 7;
    expect_refused("layout", hepCombineSend(routing, &combine, stream), kInvalid, {"layout", "7"});
  });
}

TEST(BadHalves, BatchesKeepToTheTokensOfLowLatency) {
  with_low_latency_batch([](Batch& batch) {
    const hepRouting_t routing = batch.routing.get();
    const hepStream_t stream = batch.self.stream.get();
    const Mentions mentions = {"num_tokens", "17", "low_latency_tokens", "16"};
    hepUpdate_t update = batch.choice;
    update.num_tokens = 17;
    expect_refused("update", hepRoutingUpdate(routing, &update, stream), kInvalid, mentions);
    hepDispatchArgs_t dispatch = batch.dispatch;
    dispatch.update = &update;
    expect_refused("dispatch", hepDispatch(routing, &dispatch, stream), kInvalid, mentions);
    expect_refused("half", hepDispatchSend(routing, &dispatch, stream), kInvalid, mentions);
  });
}

TEST(BadHalves, UpdatesInADispatchAreChecked) {
  const struct {
    const char* what;
    void (*spoil)(hepDispatchArgs_t* args, hepUpdate_t* update);
    Mentions mentions;
  } table[] = {
      {"negative T", [](auto*, auto* u) { u->num_tokens = -1; }, {"num_tokens of hepUpdate_t"}},
      {"no K", [](auto*, auto* u) { u->top_k = 0; }, {"top_k of hepUpdate_t", "0"}},
      {"K past max_top_k", [](auto*, auto* u) { u->top_k = 5; }, {"top_k of hepUpdate_t", "5"}},
      {"index type", [](auto*, auto* u) { u->index_type = 3; }, {"index_type of hepUpdate_t", "3"}},
      {"no indices", [](auto*, auto* u) { u->indices = nullptr; }, {"indices of hepUpdate_t"}},
      {"magic", [](auto*, auto* u) { u->magic ^= 1; }, {"hepUpdate_t", "magic"}},
      {"size", [](auto*, auto* u) { u->size = 15; }, {"hepUpdate_t", "size"}},
      {"no x", [](auto* a, auto*) { a->x = nullptr; }, {"x", "num_tokens"}},
  };
  const auto check = [&](Batch& batch) {
    Batch fresh(batch.self, low_latency_config());  // never updated, and not by what is refused
    for (const auto& entry : table) {
      hepDispatchArgs_t args = fresh.dispatch;
      hepUpdate_t update = fresh.choice;
      args.update = &update;
      entry.spoil(&args, &update);
      for (Batch* on : {&batch, &fresh})
        expect_refused(entry.what, hepDispatch(on->routing.get(), &args, batch.self.stream.get()),
                       kInvalid, entry.mentions);
    }
    expect_refused("no update",
                   hepDispatch(fresh.routing.get(), &fresh.dispatch, batch.self.stream.get()),
                   kUsage, {"hepRoutingUpdate"});
    expect_refused("combine",
                   hepCombine(fresh.routing.get(), &fresh.combine, batch.self.stream.get()), kUsage,
                   {"hepRoutingUpdate"});
  };
  with_batch(low_latency_config(), check);
  with_low_latency_batch(check);
}

TEST(BadHalves, RoutingsKeepToTheLanes) {
  const struct {
    const char* what;
    int mode, lane;
    Mentions mentions;
  } table[] = {
      {"past the lanes", hepModeThroughput, 2, {"lane is 2", "0 to 1"}},
      {"negative", hepModeThroughput, -1, {"lane is -1", "0 to 1"}},
      {"past those of low latency", hepModeLowLatency, 4, {"lane is 4", "0 to 3"}},
      {"negative", hepModeLowLatency, -1, {"lane is -1", "0 to 3"}},
  };
  with_batch(low_latency_config(), [&](Batch& batch) {
    for (const auto& entry : table) {
      hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
      config.mode = entry.mode;
      config.lane = entry.lane;
      hepRouting_t routing = batch.routing.get();
      expect_refused(entry.what, hepRoutingCreate(&routing, batch.self.comm, &config), kInvalid,
                     entry.mentions);
      EXPECT_EQ(routing, nullptr) << entry.what;
    }
  });
}

}  // namespace
