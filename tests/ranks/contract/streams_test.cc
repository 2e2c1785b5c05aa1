// SPDX-License-Identifier: Apache-2.0
// How the cuda backend may be called: on the legacy stream, and with any device current on the
// calling thread, which stays current.
#include <string>
#include <vector>

#include "harness/device.h"
#include "ranks/job.h"
#include "ranks/spoilt_batch.h"
#include "ranks/support.h"

namespace {

using harness::world;

// ----------------------------------------------------------------------------- the legacy stream

// Two batches, the second with operations in halves.
Job two_modes_job(const hepConfig_t& config) {
  Random random(options().seed + 60);
  JobBuilder builder(world().num_ranks(), config, random);
  for (const hepMode_t mode : {hepModeThroughput, hepModeLowLatency}) {
    const int update = builder.add_update(builder.add_routing(8, mode), 3, hepIndexInt32,
                                          std::vector<int64_t>(world().num_ranks(), 30));
    builder.update(update).query = true;
    const int dispatch = builder.add_dispatch(update, hepLayoutExpertMajor, true);
    Combine& combine = builder.combine(
        builder.add_combine(update, hepLayoutExpertMajor, hepWeightsDispatched, dispatch));
    combine.halves.split = builder.dispatch(dispatch).halves.split = mode == hepModeLowLatency;
  }
  return builder.finish("both modes");
}

TEST(Streams, TheLegacyStreamIsOneLikeOthers) {
  if (world().backend() != hepBackendCuda)
    GTEST_SKIP() << "on the host backend every stream is NULL";
  if (world().shares_devices())
    GTEST_SKIP() << "the ranks of a device would have one legacy stream, and wait for each other";
  hepConfig_t config = small_config();
  config.low_latency_tokens = 30;
  const Job job = two_modes_job(config);
  run_ranks(config, [&](Rank& self) {
    harness::Stream legacy = harness::Stream::legacy(world().backend());
    Rank on_legacy{self.rank, self.comm, legacy};
    JobRun(job, on_legacy).complete();
  });
}

// ---------------------------------------------------------------------------- the current device

// Makes another device than the rank's current for some calls.
class ElsewhereFor {
 public:
  explicit ElsewhereFor(int rank)
      : own_(world().device(rank)), other_((own_ + 1) % harness::World::num_devices()) {}

  // The call succeeds and leaves the current device alone.
  template <typename Call>
  void call(const char* name, Call body) const {
    harness::device::set_current(other_);
    const hepResult_t result = body();
    EXPECT_EQ(harness::device::current(), other_) << name;
    harness::device::set_current(own_);
    EXPECT_EQ(result, hepSuccess) << name << ": " << hepGetLastError();
  }

  int other() const { return other_; }

 private:
  const int own_, other_;
};

class OtherDevice : public testing::Test {
 protected:
  void SetUp() override {
    if (world().backend() != hepBackendCuda) GTEST_SKIP() << "the host backend has no devices";
    if (harness::World::num_devices() < 2) GTEST_SKIP() << "needs a second device";
  }
};

// A batch of random tokens, and what comes out of a round.
struct Round {
  Round(Rank& rank, const hepConfig_t& config, const hepRoutingConfig_t* place = nullptr)
      : batch(rank, config, place), out(batch.backend, batch.x.bytes()) {
    std::vector<unsigned char> bytes(batch.x.bytes());
    make_bytes(options().seed, rank.rank, 0, static_cast<int>(bytes.size()), bytes.data());
    batch.x.upload(bytes.data(), bytes.size());
    batch.combine.out = out.data();
  }

  // Waits, so that ranks that share a device never have two kernels queued.
  void finish_call() const {
    batch.self.stream.synchronize();
    batch.self.barrier();
  }

  std::vector<unsigned char> outputs() const {
    std::vector<unsigned char> all(batch.rows.bytes() + out.bytes());
    batch.rows.download(all.data(), batch.rows.bytes());
    out.download(all.data() + batch.rows.bytes(), out.bytes());
    return all;
  }

  Batch batch;
  harness::Buffer out;
};

TEST_F(OtherDevice, MayBeCurrentInEveryCallOfARound) {
  const hepConfig_t config = small_config();
  run_ranks(config, [&](Rank& self) {
    const ElsewhereFor elsewhere(self.rank);
    Round round(self, config);
    Batch& batch = round.batch;
    const hepStream_t stream = self.stream.get();
    const hepRouting_t routing = batch.routing.get();
    std::vector<unsigned char> outputs[2];
    for (std::vector<unsigned char>& found : outputs) {
      batch.rows.fill(0);
      round.out.fill(0);
      const auto call = [&](const char* name, auto body) {
        self.barrier();
        if (&found == &outputs[0]) {
          EXPECT_HEP(body()) << name;
        } else {
          elsewhere.call(name, body);
        }
        round.finish_call();
      };
      hepRoutingCounts_t counts = HEP_ROUTING_COUNTS_INITIALIZER;
      call("hepRoutingUpdate", [&] { return batch.update(); });
      call("hepRoutingQuery", [&] { return hepRoutingQuery(routing, &counts, stream); });
      call("hepDispatch", [&] { return hepDispatch(routing, &batch.dispatch, stream); });
      call("hepCombine", [&] { return hepCombine(routing, &batch.combine, stream); });
      found = round.outputs();
    }
    EXPECT_EQ(outputs[0], outputs[1]);
  });
}

TEST_F(OtherDevice, MayBeCurrentInHalves) {
  hepConfig_t config = small_config();
  config.low_latency_tokens = Batch::kTokens;
  hepRoutingConfig_t place = HEP_ROUTING_CONFIG_INITIALIZER;
  place.mode = hepModeLowLatency;
  run_ranks(config, [&](Rank& self) {
    const ElsewhereFor elsewhere(self.rank);
    Round round(self, config, &place);
    Batch& batch = round.batch;
    const hepStream_t stream = self.stream.get();
    const hepRouting_t routing = batch.routing.get();
    batch.update_in_the_dispatch();
    const auto call = [&](const char* name, auto body) {
      elsewhere.call(name, body);
      round.finish_call();
    };
    call("hepDispatchSend", [&] { return hepDispatchSend(routing, &batch.dispatch, stream); });
    call("hepDispatchReceive", [&] { return hepDispatchReceive(routing, stream); });
    call("hepCombineSend", [&] { return hepCombineSend(routing, &batch.combine, stream); });
    call("hepCombineReceive", [&] { return hepCombineReceive(routing, stream); });
    EXPECT_EQ(async_error(self), hepSuccess) << hepGetLastError();
  });
}

TEST_F(OtherDevice, MayBeCurrentInCallsWithoutAStream) {
  const hepConfig_t config = small_config();
  run_ranks(config, [&](Rank& self) {
    const ElsewhereFor elsewhere(self.rank);
    harness::Buffer memory(world().backend(), 4096);
    hepRouting_t routing = nullptr;
    hepRoutingView_t view = HEP_ROUTING_VIEW_INITIALIZER;
    hepLimits_t limits = HEP_LIMITS_INITIALIZER;
    hepFailure_t failure = HEP_FAILURE_INITIALIZER;
    hepResult_t error;
    void* heap = nullptr;
    const auto create = [&] { return hepRoutingCreate(&routing, self.comm, nullptr); };
    elsewhere.call("hepRoutingCreate", create);
    elsewhere.call("hepRoutingGetView", [&] { return hepRoutingGetView(routing, &view); });
    elsewhere.call("hepRoutingDestroy", [&] { return hepRoutingDestroy(routing); });
    elsewhere.call("hepMemAlloc", [&] { return hepMemAlloc(self.comm, 4096, &heap); });
    elsewhere.call("hepMemFree", [&] { return hepMemFree(self.comm, heap); });
    elsewhere.call("hepCommRegister",
                   [&] { return hepCommRegister(self.comm, memory.data(), memory.bytes()); });
    elsewhere.call("hepCommDeregister",
                   [&] { return hepCommDeregister(self.comm, memory.data()); });
    elsewhere.call("hepCommLimits", [&] { return hepCommLimits(self.comm, &limits); });
    elsewhere.call("hepCommGetAsyncError", [&] { return hepCommGetAsyncError(self.comm, &error); });
    elsewhere.call("hepCommGetFailure", [&] { return hepCommGetFailure(self.comm, &failure); });
    self.barrier();
    expect_working(self, config);
  });
}

TEST_F(OtherDevice, MayBeCurrentInTheDestructionOfACommunicator) {
  const hepConfig_t config = small_config();
  world().run([&](int rank) {
    hepComm_t comm = nullptr;
    ASSERT_HEP(world().create_comm(rank, config, &comm));
    const ElsewhereFor elsewhere(rank);
    world().barrier(rank);
    elsewhere.call("hepCommAbort", [&] { return hepCommAbort(comm); });
    elsewhere.call("hepCommDestroy", [&] { return hepCommDestroy(comm); });
  });
}

// Memory of another device than the rank's.
TEST_F(OtherDevice, HasMemoryThatIsRefused) {
  with_batch([](Batch& batch) {
    const ElsewhereFor elsewhere(batch.self.rank);
    harness::device::set_current(elsewhere.other());
    const harness::Buffer foreign(batch.backend, batch.rows.bytes());
    harness::device::set_current(world().device(batch.self.rank));
    const hepStream_t stream = batch.self.stream.get();
    const Mentions devices = {"device " + std::to_string(elsewhere.other()),
                              "device " + std::to_string(world().device(batch.self.rank))};
    hepDispatchArgs_t dispatch = batch.dispatch;
    dispatch.x = foreign.data();
    expect_refused("x", hepDispatch(batch.routing.get(), &dispatch, stream),
                   hepErrorInvalidArgument, {"x", devices[0], devices[1]});
    hepCombineArgs_t combine = batch.combine;
    combine.y = foreign.data();
    expect_refused("y", hepCombine(batch.routing.get(), &combine, stream), hepErrorInvalidArgument,
                   {"y", devices[0], devices[1]});
  });
}

}  // namespace
