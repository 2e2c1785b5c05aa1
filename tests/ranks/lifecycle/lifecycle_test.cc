// SPDX-License-Identifier: Apache-2.0
// Communicators come to be in several ways, answer queries, and end in good order.
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "ranks/job.h"
#include "ranks/support.h"

namespace {

using harness::world;

hepConfig_t world_config() {
  hepConfig_t config = small_config();
  config.backend = world().backend();
  return config;
}

int gather_over_world(const void* send, void* receive, size_t bytes, void* context) {
  return world().all_gather(*static_cast<int*>(context), send, receive, bytes) ? 0 : 1;
}

// A round on a communicator that the test itself made, then its end.
void use_and_destroy(int rank, hepComm_t comm, const hepConfig_t& config) {
  harness::Stream stream(world().backend());
  Rank self{rank, comm, stream};
  world().barrier(rank);
  expect_working(self, config);
  EXPECT_HEP(hepCommDestroy(comm));
}

TEST(Lifecycle, UniqueIdMadeByRankZeroJoinsAllRanks) {
  world().run([](int rank) {
    hepUniqueId_t id{};
    if (rank == 0) {
      EXPECT_HEP(hepGetUniqueId(&id));
    }
    std::vector<hepUniqueId_t> ids(world().num_ranks());
    ASSERT_TRUE(world().all_gather(rank, &id, ids.data(), sizeof id));
    const hepConfig_t config = world_config();
    hepComm_t comm = nullptr;
    ASSERT_HEP(hepCommInitRank(&comm, world().num_ranks(), &ids[0], rank, &config));
    use_and_destroy(rank, comm, config);
  });
}

TEST(Lifecycle, UniqueIdOfAnyRankServes) {
  world().run([](int rank) {
    const int last = world().num_ranks() - 1;
    hepUniqueId_t id{};
    if (rank == last) {
      EXPECT_HEP(hepGetUniqueId(&id));
    }
    std::vector<hepUniqueId_t> ids(world().num_ranks());
    ASSERT_TRUE(world().all_gather(rank, &id, ids.data(), sizeof id));
    const hepConfig_t config = world_config();
    hepComm_t comm = nullptr;
    ASSERT_HEP(hepCommInitRank(&comm, world().num_ranks(), &ids[last], rank, &config));
    use_and_destroy(rank, comm, config);
  });
}

TEST(Lifecycle, AllGatherCallbackJoinsAllRanks) {
  world().run([](int rank) {
    const hepConfig_t config = world_config();
    hepComm_t comm = nullptr;
    ASSERT_HEP(
        hepCommInitCallback(&comm, world().num_ranks(), rank, gather_over_world, &rank, &config));
    use_and_destroy(rank, comm, config);
  });
}

TEST(Lifecycle, OneCallCreatesAllRanksOfAProcess) {
  if (world().num_processes() > 1) {
    GTEST_SKIP() << "hepCommInitAll needs all ranks in one process";
  }
  const hepConfig_t config = world_config();
  std::vector<int> devices;
  for (int rank = 0; rank < world().num_ranks(); ++rank) devices.push_back(world().device(rank));
  std::vector<hepComm_t> comms(world().num_ranks());
  ASSERT_HEP(hepCommInitAll(comms.data(), world().num_ranks(), devices.data(), &config));
  world().run([&](int rank) { use_and_destroy(rank, comms[rank], config); });
}

TEST(Lifecycle, OneRankAloneIsACommunicator) {
  hepConfig_t config = world_config();
  config.num_experts = 4;
  config.domain_size = 0;
  const int device = world().device(0);
  hepComm_t comm = nullptr;
  ASSERT_HEP(hepCommInitAll(&comm, 1, &device, &config));
  int num_ranks = 0;
  EXPECT_HEP(hepCommCount(comm, &num_ranks));
  EXPECT_EQ(num_ranks, 1);
  EXPECT_HEP(hepCommDestroy(comm));
}

TEST(Lifecycle, QueriesAnswerWhatTheCommunicatorIs) {
  const hepConfig_t config = small_config();
  run_ranks(config, [&](Rank& self) {
    int num_ranks = -1, rank = -1, device = -2;
    hepBackend_t backend = hepBackendAuto;
    EXPECT_HEP(hepCommCount(self.comm, &num_ranks));
    EXPECT_HEP(hepCommUserRank(self.comm, &rank));
    EXPECT_HEP(hepCommDevice(self.comm, &device));
    EXPECT_HEP(hepCommBackend(self.comm, &backend));
    EXPECT_EQ(num_ranks, world().num_ranks());
    EXPECT_EQ(rank, self.rank);
    EXPECT_EQ(device, world().device(self.rank));
    EXPECT_EQ(backend, world().backend());
  });
}

TEST(Lifecycle, LimitsTellShapeAndChoices) {
  const hepConfig_t config = small_config();
  run_ranks(config, [&](Rank& self) {
    hepLimits_t limits = HEP_LIMITS_INITIALIZER;
    EXPECT_HEP(hepCommLimits(self.comm, &limits));
    EXPECT_EQ(limits.max_tokens, config.max_tokens);
    EXPECT_EQ(limits.max_top_k, config.max_top_k);
    EXPECT_EQ(limits.num_experts, config.num_experts);
    EXPECT_EQ(limits.num_local_experts, config.num_experts / world().num_ranks());
    EXPECT_EQ(limits.row_bytes, config.hidden * 2);
    EXPECT_EQ(limits.max_flat_rows, int64_t{world().num_ranks()} * config.max_tokens);
    EXPECT_EQ(limits.max_expert_rows, limits.max_flat_rows * config.max_top_k);
    EXPECT_EQ(limits.timeout_ms, config.timeout_ms);
    const bool cuda = world().backend() == hepBackendCuda;
    for (const int32_t blocks :
         {limits.routing_blocks, limits.dispatch_blocks, limits.combine_blocks}) {
      EXPECT_GE(blocks, cuda ? 1 : 0);
      EXPECT_LE(blocks, cuda ? 64 : 0);
    }
    for (const int layout : {hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded}) {
      EXPECT_EQ(limits.layout_dispatch_blocks[layout] > 0, cuda);
      EXPECT_EQ(limits.layout_combine_blocks[layout] > 0, cuda);
      EXPECT_LE(limits.layout_dispatch_blocks[layout], limits.dispatch_blocks);
      EXPECT_LE(limits.layout_combine_blocks[layout], limits.combine_blocks);
    }
  });
}

TEST(Lifecycle, NothingHasFailedOnAFreshCommunicator) {
  run_ranks(small_config(), [](Rank& self) {
    EXPECT_EQ(async_error(self), hepSuccess);
    hepFailure_t failure = HEP_FAILURE_INITIALIZER;
    failure.result = hepErrorInternal;
    EXPECT_HEP(hepCommGetFailure(self.comm, &failure));
    EXPECT_EQ(failure.result, hepSuccess);
  });
}

TEST(Lifecycle, DestroyingNothingIsLegal) {
  EXPECT_HEP(hepCommDestroy(nullptr));
  EXPECT_HEP(hepRoutingDestroy(nullptr));
}

TEST(Lifecycle, CommunicatorsFollowEachOther) {
  const hepConfig_t config = small_config();
  for (int round = 0; round < 3; ++round) {
    run_ranks(config, [&](Rank& self) { expect_working(self, config); });
  }
}

TEST(Lifecycle, TwoCommunicatorsWorkSideBySide) {
  const hepConfig_t config = small_config();
  hepConfig_t wider = config;
  wider.hidden = 512;
  run_ranks(config, [&](Rank& self) {
    hepComm_t second = nullptr;
    ASSERT_HEP(world().create_comm(self.rank, wider, &second));
    Rank other{self.rank, second, self.stream};
    self.barrier();
    for (int round = 0; round < 2; ++round) {
      expect_working(self, config);
      expect_working(other, wider);
    }
    EXPECT_HEP(hepCommDestroy(second));
  });
}

TEST(Lifecycle, HeapGivesAlignedDisjointBlocks) {
  run_ranks(small_config(), [](Rank& self) {
    char* blocks[3] = {};
    for (char*& block : blocks) {
      ASSERT_HEP(hepMemAlloc(self.comm, 1000, reinterpret_cast<void**>(&block)));
      EXPECT_EQ(reinterpret_cast<uintptr_t>(block) % 256, 0u);
    }
    const hepBackend_t backend = world().backend();
    for (int i = 0; i < 3; ++i) harness::fill(backend, blocks[i], static_cast<char>(i), 1000);
    for (int i = 0; i < 3; ++i) {
      std::vector<char> bytes(1000);
      harness::download(backend, bytes.data(), blocks[i], bytes.size());
      EXPECT_EQ(bytes, std::vector<char>(1000, static_cast<char>(i)));
    }
    for (char* block : blocks) EXPECT_HEP(hepMemFree(self.comm, block));
  });
}

TEST(Lifecycle, HeapSaysWhenItIsExhaustedAndTakesBlocksBack) {
  const hepConfig_t config = small_config();
  run_ranks(config, [&](Rank& self) {
    void *all = nullptr, *more = &all;
    ASSERT_HEP(hepMemAlloc(self.comm, config.heap_bytes, &all));
    EXPECT_EQ(hepMemAlloc(self.comm, 256, &more), hepErrorOutOfMemory);
    EXPECT_STRNE(hepGetLastError(), "");
    EXPECT_EQ(more, nullptr);
    EXPECT_HEP(hepMemFree(self.comm, all));

    // Freed in an order that leaves gaps, which must grow together again.
    std::vector<void*> blocks(4);
    for (void*& block : blocks) {
      ASSERT_HEP(hepMemAlloc(self.comm, config.heap_bytes / 4, &block));
    }
    for (const int i : {1, 3, 0, 2}) EXPECT_HEP(hepMemFree(self.comm, blocks[i]));
    EXPECT_HEP(hepMemAlloc(self.comm, config.heap_bytes, &all));
    EXPECT_HEP(hepMemFree(self.comm, all));
  });
}

TEST(Lifecycle, HeapRefusesPointersThatAreNotItsOwn) {
  const hepConfig_t config = small_config();
  run_ranks(config, [&](Rank& self) {
    int foreign = 0;
    char* block = nullptr;
    ASSERT_HEP(hepMemAlloc(self.comm, 1024, reinterpret_cast<void**>(&block)));
    EXPECT_EQ(hepMemFree(self.comm, &foreign), hepErrorInvalidArgument);
    EXPECT_EQ(hepMemFree(self.comm, block + 256), hepErrorInvalidArgument);
    EXPECT_HEP(hepMemFree(self.comm, block));
    EXPECT_EQ(hepMemFree(self.comm, block), hepErrorInvalidArgument);
    EXPECT_HEP(hepMemFree(self.comm, nullptr));
    expect_working(self, config);
  });
}

TEST(Lifecycle, CommunicatorsWithLiveRoutingsAreNotDestroyed) {
  const hepConfig_t config = small_config();
  run_ranks(config, [&](Rank& self) {
    {
      RoutingHandle routing;
      ASSERT_HEP(hepRoutingCreate(routing.out(), self.comm, nullptr));
      EXPECT_EQ(hepCommDestroy(self.comm), hepErrorInvalidUsage);
      EXPECT_STRNE(hepGetLastError(), "");
    }
    expect_working(self, config);
  });
}

TEST(Lifecycle, AbortedCommunicatorsRefuseWorkAndCanBeReplaced) {
  const hepConfig_t config = small_config();
  run_ranks(config, [&](Rank& self) {
    expect_working(self, config);
    EXPECT_HEP(hepCommAbort(self.comm));
    RoutingHandle routing;
    EXPECT_EQ(hepRoutingCreate(routing.out(), self.comm, nullptr), hepErrorAborted);
    EXPECT_STRNE(hepGetLastError(), "");
    EXPECT_EQ(async_error(self), hepErrorAborted);
  });
  run_ranks(config, [&](Rank& self) { expect_working(self, config); });
}

TEST(Lifecycle, OperationsOfAnAbortedCommunicatorAreRefused) {
  const hepConfig_t config = small_config();
  run_ranks(config, [&](Rank& self) {
    RoutingHandle routing;
    ASSERT_HEP(hepRoutingCreate(routing.out(), self.comm, nullptr));
    ASSERT_HEP(
        harness::update_routing(routing.get(), nullptr, 0, 1, hepIndexInt32, self.stream.get()));
    self.stream.synchronize();
    self.barrier();
    EXPECT_HEP(hepCommAbort(self.comm));
    hepDispatchArgs_t dispatch = HEP_DISPATCH_ARGS_INITIALIZER;
    hepCombineArgs_t combine = HEP_COMBINE_ARGS_INITIALIZER;
    hepRoutingCounts_t counts = HEP_ROUTING_COUNTS_INITIALIZER;
    const hepStream_t stream = self.stream.get();
    EXPECT_EQ(harness::update_routing(routing.get(), nullptr, 0, 1, hepIndexInt32, stream),
              hepErrorAborted);
    EXPECT_EQ(hepDispatch(routing.get(), &dispatch, stream), hepErrorAborted);
    EXPECT_EQ(hepCombine(routing.get(), &combine, stream), hepErrorAborted);
    EXPECT_EQ(hepRoutingQuery(routing.get(), &counts, stream), hepErrorAborted);
  });
}

TEST(Lifecycle, AbortFreesAnOperationThatWaitsForAPeer) {
  if (world().num_ranks() == 1) GTEST_SKIP() << "needs a peer to wait for";
  const hepConfig_t config = small_config();
  run_ranks(config, [&](Rank& self) {
    RoutingHandle routing;
    ASSERT_HEP(hepRoutingCreate(routing.out(), self.comm, nullptr));
    self.barrier();
    if (self.rank != world().num_ranks() - 1) {
      std::thread watcher([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(200));
        EXPECT_HEP(hepCommAbort(self.comm));
      });
      // The last rank takes no part, so that this waits until the abort, long before the timeout.
      harness::update_routing(routing.get(), nullptr, 0, 1, hepIndexInt32, self.stream.get());
      self.stream.synchronize();
      watcher.join();
      EXPECT_EQ(async_error(self), hepErrorAborted);
    }
    self.barrier();
  });
}

}  // namespace
