// SPDX-License-Identifier: Apache-2.0
// What low-latency routings refuse: halves in a wrong order, batches that are too large, updates that
// make no sense in the call of a dispatch.
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

void add_update(Batch& batch) {
  batch.dispatch.update = 1;
  batch.dispatch.indices = batch.indices.data();
  batch.dispatch.num_tokens = Batch::kTokens;
  batch.dispatch.top_k = Batch::kTopK;
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

    add_update(batch);
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
    batch.dispatch.update = batch.dispatch.top_k = 0;
    batch.dispatch.num_tokens = 0;
    batch.dispatch.indices = nullptr;
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
    expect_refused("update",
                   hepRoutingUpdate(routing, batch.indices.data(), 17, 2, hepIndexInt32, stream),
                   kInvalid, mentions);
    hepDispatchArgs_t dispatch = batch.dispatch;
    dispatch.update = 1;
    dispatch.indices = batch.indices.data();
    dispatch.top_k = 2;
    dispatch.num_tokens = 17;
    expect_refused("dispatch", hepDispatch(routing, &dispatch, stream), kInvalid, mentions);
    expect_refused("half", hepDispatchSend(routing, &dispatch, stream), kInvalid, mentions);
  });
}

TEST(BadHalves, UpdatesInADispatchAreChecked) {
  const struct {
    const char* what;
    void (*spoil)(hepDispatchArgs_t* args);
    hepResult_t expected;
    Mentions mentions;
  } table[] = {
      {"negative T", [](hepDispatchArgs_t* a) { a->num_tokens = -1; }, kInvalid, {"num_tokens"}},
      {"no K", [](hepDispatchArgs_t* a) { a->top_k = 0; }, kInvalid, {"top_k", "0"}},
      {"K past max_top_k", [](hepDispatchArgs_t* a) { a->top_k = 5; }, kInvalid, {"top_k", "5"}},
      {"index type",
       [](hepDispatchArgs_t* a) { a->index_type = 3; },
       kInvalid,
       {"index_type", "3"}},
      {"no indices", [](hepDispatchArgs_t* a) { a->indices = nullptr; }, kInvalid, {"indices"}},
      {"reserved",
       [](hepDispatchArgs_t* a) { a->reserved2 = 1; },
       hepErrorUnsupported,
       {"reserved2"}},
      {"no x", [](hepDispatchArgs_t* a) { a->x = nullptr; }, kInvalid, {"x", "num_tokens"}},
      {"no update", [](hepDispatchArgs_t* a) { a->update = 0; }, kInvalid, {"indices", "update"}},
      {"K without update",
       [](hepDispatchArgs_t* a) {
         a->update = 0;
         a->indices = nullptr;
         a->num_tokens = 0;
       },
       kInvalid,
       {"top_k", "update"}},
      {"T without update",
       [](hepDispatchArgs_t* a) {
         a->update = a->top_k = 0;
         a->indices = nullptr;
       },
       kInvalid,
       {"num_tokens", "update"}},
      {"index type without update",
       [](hepDispatchArgs_t* a) {
         a->update = a->top_k = 0;
         a->num_tokens = 0;
         a->indices = nullptr;
         a->index_type = hepIndexInt64;
       },
       kInvalid,
       {"index_type", "update"}},
  };
  const auto check = [&](Batch& batch) {
    Batch fresh(batch.self, low_latency_config());  // never updated, and not by what is refused
    add_update(fresh);
    for (const auto& entry : table) {
      hepDispatchArgs_t args = fresh.dispatch;
      entry.spoil(&args);
      for (Batch* on : {&batch, &fresh})
        expect_refused(
            entry.what, hepDispatch(on->routing.get(), &args, batch.self.stream.get()),
            args.update == 0 && on == &fresh ? kUsage : entry.expected,
            args.update == 0 && on == &fresh ? Mentions{"hepRoutingUpdate"} : entry.mentions);
    }
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
