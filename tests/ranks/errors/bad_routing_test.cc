// SPDX-License-Identifier: Apache-2.0
// Bad arguments of a routing's creation and update, bad streams and pointers, and bad expert ids.
#include <string>
#include <vector>

#include "ranks/job.h"
#include "ranks/spoilt_batch.h"
#include "ranks/support.h"

namespace {

using harness::world;

constexpr hepResult_t kInvalid = hepErrorInvalidArgument;

TEST(BadRouting, OperationsWantAnUpdateFirst) {
  const hepConfig_t config = small_config();
  run_ranks(config, [&](Rank& self) {
    Batch batch(self, config);
    const hepRouting_t routing = batch.routing.get();
    hepRoutingCounts_t counts = HEP_ROUTING_COUNTS_INITIALIZER;
    expect_refused("dispatch", hepDispatch(routing, &batch.dispatch, self.stream.get()),
                   hepErrorInvalidUsage, {"hepRoutingUpdate"});
    expect_refused("combine", hepCombine(routing, &batch.combine, self.stream.get()),
                   hepErrorInvalidUsage, {"hepRoutingUpdate"});
    expect_refused("query", hepRoutingQuery(routing, &counts, self.stream.get()),
                   hepErrorInvalidUsage, {"hepRoutingUpdate"});
    self.barrier();
    expect_working(self, config);
  });
}

TEST(BadRouting, UpdateRefusesBadShapesAndPointers) {
  with_batch([](Batch& batch) {
    const struct {
      const char* what;
      const void* indices;
      int64_t num_tokens;
      int top_k;
      hepIndexType_t type;
      Mentions mentions;
    } table[] = {
        {"negative T", batch.indices.data(), -1, 2, hepIndexInt32, {"num_tokens", "-1"}},
        {"T past max_tokens", batch.indices.data(), 65, 2, hepIndexInt32, {"num_tokens", "65"}},
        {"T past 32 bits",
         batch.indices.data(),
         (int64_t{1} << 32) + 1,
         2,
         hepIndexInt32,
         {"num_tokens", "4294967297"}},
        {"no K", batch.indices.data(), 8, 0, hepIndexInt32, {"top_k", "0"}},
        {"K past max_top_k", batch.indices.data(), 8, 5, hepIndexInt32, {"top_k", "5"}},
        {"no indices", nullptr, 8, 2, hepIndexInt32, {"indices"}},
        {"int32 misaligned",
         misaligned<void>(batch.indices, 2),
         8,
         2,
         hepIndexInt32,
         {"indices", "4"}},
        {"int64 misaligned",
         misaligned<void>(batch.indices, 4),
         8,
         2,
         hepIndexInt64,
         {"indices", "8"}},
    };
    for (const auto& entry : table) {
      expect_refused(entry.what,
                     harness::update_routing(batch.routing.get(), entry.indices, entry.num_tokens,
                                             entry.top_k, entry.type, batch.self.stream.get()),
                     kInvalid, entry.mentions);
    }
  });
}

TEST(BadRouting, RoutingsRefuseBadConfigs) {
  const struct {
    const char* what;
    int alignment, mode, lane;
    hepResult_t expected;
    Mentions mentions;
  } table[] = {
      {"alignment -8", -8, 0, 0, kInvalid, {"alignment", "-8"}},
      {"alignment 4097", 4097, 0, 0, kInvalid, {"alignment", "4097", "4096"}},
      {"low latency", 0, hepModeLowLatency, 0, kInvalid, {"mode", "low_latency_tokens"}},
      {"mode", 0, 9, 0, kInvalid, {"mode", "9"}},
      {"lane", 0, 0, 1, kInvalid, {"lane", "1"}},
      {"negative lane", 0, 0, -1, kInvalid, {"lane", "-1"}},
  };
  with_batch([&](Batch& batch) {
    for (const auto& entry : table) {
      hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
      config.alignment = entry.alignment;
      config.mode = entry.mode;
      config.lane = entry.lane;
      hepRouting_t routing = batch.routing.get();
      expect_refused(entry.what, hepRoutingCreate(&routing, batch.self.comm, &config),
                     entry.expected, entry.mentions);
      EXPECT_EQ(routing, nullptr) << entry.what;
    }
  });
}

// A config of a routing with memory of a buffer's.
struct Memory {
  explicit Memory(Rank& self) : buffer(world().backend(), bytes_of(self)) {
    config.memory = buffer.data();
    config.memory_bytes = buffer.bytes();
  }
  static size_t bytes_of(Rank& self) {
    uint64_t bytes = 0;
    EXPECT_HEP(hepRoutingMemoryBytes(self.comm, nullptr, &bytes));
    return bytes;
  }
  harness::Buffer buffer;
  hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
};

void expect_memory_refused(const char* what, Rank& self, const hepRoutingConfig_t& config,
                           const Mentions& mentions) {
  hepRouting_t routing = nullptr;
  expect_refused(what, hepRoutingCreate(&routing, self.comm, &config), kInvalid, mentions);
  EXPECT_EQ(routing, nullptr) << what;
}

TEST(BadRouting, MemoryThatDoesNotServeIsRefused) {
  with_batch([](Batch& batch) {
    Rank& self = batch.self;
    const Memory memory(self);
    hepRoutingConfig_t config = memory.config;
    --config.memory_bytes;
    expect_memory_refused("too small", self, config,
                          {"memory_bytes", std::to_string(config.memory_bytes),
                           std::to_string(memory.config.memory_bytes)});
    config = memory.config;
    config.memory = memory.buffer.as<char>() + 128;
    expect_memory_refused("misaligned", self, config, {"memory", "256"});
    config.memory = nullptr;
    expect_memory_refused("none", self, config, {"memory", "NULL"});
  });
}

TEST(BadRouting, MemoryServesOneRoutingAtATime) {
  with_batch([](Batch& batch) {
    Rank& self = batch.self;
    const Memory memory(self);
    {
      RoutingHandle first;
      ASSERT_HEP(hepRoutingCreate(first.out(), self.comm, &memory.config));
      expect_memory_refused("given twice", self, memory.config, {"memory", "in use"});
      hepRoutingConfig_t config = memory.config;
      config.memory = memory.buffer.as<char>() + 256;
      expect_memory_refused("within", self, config, {"memory", "in use"});
    }
    RoutingHandle second;
    EXPECT_HEP(hepRoutingCreate(second.out(), self.comm, &memory.config));
  });
}

TEST(BadRouting, LimitsOfARoutingAreThoseOfTheCommunicatorOrLess) {
  with_batch([](Batch& batch) {
    for (const int limit : {-1, 65}) {
      hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
      config.max_tokens = limit;
      expect_memory_refused("tokens", batch.self, config,
                            {"max_tokens", std::to_string(limit), "64"});
      uint64_t bytes = 0;
      expect_refused("bytes", hepRoutingMemoryBytes(batch.self.comm, &config, &bytes), kInvalid,
                     {"max_tokens"});
    }
    for (const int limit : {-1, 5}) {
      hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
      config.max_top_k = limit;
      expect_memory_refused("selections", batch.self, config,
                            {"max_top_k", std::to_string(limit), "4"});
    }
  });
}

TEST(BadRouting, UpdatesPastTheLimitsOfTheirRoutingAreRefused) {
  with_batch([](Batch& batch) {
    hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
    config.max_tokens = Batch::kTokens;
    config.max_top_k = Batch::kTopK;
    RoutingHandle routing;
    ASSERT_HEP(hepRoutingCreate(routing.out(), batch.self.comm, &config));
    const auto update = [&](int num_tokens, int top_k) {
      return harness::update_routing(routing.get(), batch.indices.data(), num_tokens, top_k,
                                     hepIndexInt32, batch.self.stream.get());
    };
    expect_refused("tokens", update(Batch::kTokens + 1, 1), kInvalid,
                   {"num_tokens", "9", "the routing's max_tokens, 8"});
    expect_refused("selections", update(1, Batch::kTopK + 1), kInvalid,
                   {"top_k", "3", "the routing's max_top_k, 2"});
    EXPECT_HEP(update(Batch::kTokens, Batch::kTopK));
  });
}

TEST(BadRouting, HostMemoryOfARoutingIsRefusedByItsFirstUpdate) {
  if (world().backend() != hepBackendCuda) GTEST_SKIP() << "a rule of the cuda backend";
  with_batch([](Batch& batch) {
    std::vector<char> plain(Memory::bytes_of(batch.self) + 256);
    hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
    config.memory = plain.data() + 256 - reinterpret_cast<uintptr_t>(plain.data()) % 256;
    config.memory_bytes = Memory::bytes_of(batch.self);
    RoutingHandle routing;
    ASSERT_HEP(hepRoutingCreate(routing.out(), batch.self.comm, &config));
    expect_refused("update",
                   hepRoutingUpdate(routing.get(), &batch.choice, batch.self.stream.get()),
                   kInvalid, {"memory of hepRoutingConfig_t is ", "not device memory"});
    batch.update_in_the_dispatch();
    expect_refused("dispatch", hepDispatch(routing.get(), &batch.dispatch, batch.self.stream.get()),
                   kInvalid, {"memory of hepRoutingConfig_t is ", "not device memory"});
  });
}

TEST(BadRouting, ABatchThatIsTooLargeForTheRoutingOfAPeerIsReported) {
  if (world().num_ranks() < 2) GTEST_SKIP() << "needs two ranks to disagree";
  hepConfig_t config = small_config();
  config.low_latency_tokens = Batch::kTokens;
  const int last = world().num_ranks() - 1;
  for (const bool in_one_launch : {false, true})
    run_ranks(config, [&](Rank& self) {
      hepRoutingConfig_t place = HEP_ROUTING_CONFIG_INITIALIZER;
      place.mode = in_one_launch ? hepModeLowLatency : hepModeThroughput;
      if (self.rank == last) place.max_tokens = Batch::kTokens - 1;
      Batch batch(self, config, &place);
      if (self.rank == last) --batch.choice.num_tokens;
      self.barrier();
      if (in_one_launch) {
        batch.update_in_the_dispatch();
        hepDispatch(batch.routing.get(), &batch.dispatch, self.stream.get());
      } else {
        batch.update();
      }
      self.stream.synchronize();
      hepResult_t error = hepSuccess;
      if (self.rank == last) {
        EXPECT_HEP(hepCommGetAsyncError(self.comm, &error));
        EXPECT_EQ(error, hepErrorMismatch);
        // Every other rank has such a batch, and any of them may be named.
        expect_mentions(hepGetLastError(), {"8 tokens", "at most 7 tokens"});
      }
      self.barrier();
    });
}

TEST(BadRouting, StreamsAreRefusedOnTheHostBackend) {
  if (world().backend() != hepBackendHost) GTEST_SKIP() << "a rule of the host backend";
  with_batch([](Batch& batch) {
    const auto stream = batch.numbers.as<CUstream_st>();
    const hepRouting_t routing = batch.routing.get();
    hepRoutingCounts_t counts = HEP_ROUTING_COUNTS_INITIALIZER;
    expect_refused(
        "update",
        harness::update_routing(routing, batch.indices.data(), 8, 2, hepIndexInt32, stream),
        kInvalid, {"stream"});
    expect_refused("dispatch", hepDispatch(routing, &batch.dispatch, stream), kInvalid, {"stream"});
    expect_refused("combine", hepCombine(routing, &batch.combine, stream), kInvalid, {"stream"});
    expect_refused("query", hepRoutingQuery(routing, &counts, stream), kInvalid, {"stream"});
  });
}

TEST(BadRouting, HostPointersAreRefusedOnTheCudaBackend) {
  if (world().backend() != hepBackendCuda) GTEST_SKIP() << "a rule of the cuda backend";
  with_batch([](Batch& batch) {
    alignas(256) static char plain[65536];
    expect_refused("indices",
                   harness::update_routing(batch.routing.get(), plain, 8, 2, hepIndexInt32,
                                           batch.self.stream.get()),
                   kInvalid, {"indices"});
  });
}

TEST(BadRouting, IllegalExpertIdsCountAsNoneAndAreReported) {
  const hepConfig_t config = small_config();
  for (const hepIndexType_t type : {hepIndexInt32, hepIndexInt64}) {
    Random random(options().seed + 30 + type);
    JobBuilder builder(world().num_ranks(), config.num_experts, config.hidden, random);
    RoutingPattern pattern;
    pattern.illegal_percent = 30;
    const std::vector<int64_t> tokens(world().num_ranks(), 50);
    const int update = builder.add_update(builder.add_routing(8), 4, type, tokens, pattern);
    const int dispatch = builder.add_dispatch(update, hepLayoutExpertMajor, true);
    builder.add_combine(update, hepLayoutExpertMajor, hepWeightsDispatched, dispatch);
    const Job job = builder.finish("illegal ids");
    run_ranks(config, [&](Rank& self) {
      JobRun run(job, self);
      self.barrier();
      ASSERT_TRUE(run.issue());
      run.verify();
      self.barrier();
      expect_refused("async error", async_error(self), hepErrorInvalidArgument,
                     {"token", "expert"});
    });
  }
}

TEST(BadRouting, AnIllegalExpertIdIsReportedWithItsTokenAndItsValue) {
  run_ranks(small_config(), [](Rank& self) {
    Batch batch(self, small_config());
    std::vector<int64_t> ids(Batch::kTokens * Batch::kTopK, 0);
    ids[5 * Batch::kTopK + 1] = (int64_t{1} << 32) + 77;  // which is not 77
    batch.indices.upload(ids.data(), ids.size() * sizeof(int64_t));
    self.barrier();
    ASSERT_HEP(harness::update_routing(batch.routing.get(), batch.indices.data(), Batch::kTokens,
                                       Batch::kTopK, hepIndexInt64, self.stream.get()));
    self.stream.synchronize();
    expect_refused("async error", async_error(self), hepErrorInvalidArgument,
                   {"token 5,", "expert id 4294967373"});
    self.barrier();
  });
}

TEST(BadRouting, RanksWithAnotherTopKAreReportedToAll) {
  if (world().num_ranks() < 2) GTEST_SKIP() << "needs two ranks to disagree";
  const hepConfig_t config = small_config();
  const int last = world().num_ranks() - 1;
  run_ranks(config, [&](Rank& self) {
    Batch batch(self, config);
    const int top_k = self.rank == last ? 1 : 2;
    const hepResult_t result =
        harness::update_routing(batch.routing.get(), batch.indices.data(), Batch::kTokens, top_k,
                                hepIndexInt32, self.stream.get());
    EXPECT_EQ(result, world().backend() == hepBackendHost ? hepErrorMismatch : hepSuccess);
    self.stream.synchronize();
    EXPECT_EQ(async_error(self), hepErrorMismatch);
    expect_mentions(hepGetLastError(), {"top_k", "1", "2"});
    EXPECT_EQ(batch.update(), hepErrorMismatch);
    self.barrier();
  });
  run_ranks(config, [&](Rank& self) { expect_working(self, config); });
}

}  // namespace
