// SPDX-License-Identifier: Apache-2.0
// A thread with the stack that the header demands can make every kind of call on the host backend.
#include <gtest/gtest.h>
#include <hybridep.h>
#include <pthread.h>

#include <cstdint>
#include <string>
#include <vector>

#include "harness/update.h"

namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr int kRanks = 4;
constexpr int kTokens = 200;
constexpr int kHidden = 512;
constexpr int kExperts = 64;
constexpr int kTopK = 8;
constexpr int kScaleBytes = 16;
constexpr int64_t kCapacity = kRanks * kTokens * kTopK;

// The thread of a rank, with what it cannot allocate on its stack.
struct Rank {
  hepUniqueId_t id;
  int rank;
  std::vector<int32_t> experts = std::vector<int32_t>(kTokens * kTopK);
  std::vector<uint16_t> x = std::vector<uint16_t>(kTokens * kHidden);
  std::vector<float> weights = std::vector<float>(kTokens * kTopK);
  std::vector<uint16_t> rows = std::vector<uint16_t>(kCapacity * kHidden);
  std::vector<uint8_t> scales = std::vector<uint8_t>(kCapacity * kScaleBytes);
  std::vector<uint16_t> out = std::vector<uint16_t>(kTokens * kHidden);
  std::string failed;  // the first call that did not return what it should

  void expect(hepResult_t expected, hepResult_t result, const char* call) {
    if (result != expected && failed.empty())
      failed = std::string(call) + " returned " + hepGetErrorString(result);
  }

  void move_tokens(hepRouting_t routing) {
    hepDispatchArgs_t dispatch = HEP_DISPATCH_ARGS_INITIALIZER;
    dispatch.layout = hepLayoutExpertMajor;
    dispatch.type = hepTypeFloat8E4M3;
    dispatch.quantize = hepQuantizeFloat32;
    dispatch.x = x.data();
    dispatch.weights = weights.data();
    dispatch.rows = rows.data();
    dispatch.capacity = kCapacity;
    dispatch.row_scales = scales.data();
    expect(hepSuccess, hepDispatch(routing, &dispatch, nullptr), "hepDispatch");

    hepCombineArgs_t combine = HEP_COMBINE_ARGS_INITIALIZER;
    combine.layout = hepLayoutExpertMajor;
    combine.weight_mode = hepWeightsDispatched;
    combine.y = rows.data();
    combine.capacity = kCapacity;
    combine.out = out.data();
    expect(hepSuccess, hepCombine(routing, &combine, nullptr), "hepCombine");
  }

  void use_routing(hepComm_t comm, hepMode_t mode) {
    hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
    config.mode = mode;
    hepRouting_t routing = nullptr;
    expect(hepSuccess, hepRoutingCreate(&routing, comm, &config), "hepRoutingCreate");
    expect(hepSuccess,
           harness::update_routing(routing, experts.data(), kTokens, kTopK, hepIndexInt32, nullptr),
           "hepRoutingUpdate");
    hepRoutingCounts_t counts = HEP_ROUTING_COUNTS_INITIALIZER;
    expect(hepSuccess, hepRoutingQuery(routing, &counts, nullptr), "hepRoutingQuery");
    move_tokens(routing);
    const hepDispatchArgs_t nothing = HEP_DISPATCH_ARGS_INITIALIZER;
    expect(hepErrorInvalidArgument, hepDispatch(routing, &nothing, nullptr), "hepDispatch of NULL");
    expect(hepSuccess, hepRoutingDestroy(routing), "hepRoutingDestroy");
  }

  void run() {
    for (int i = 0; i < kTokens * kTopK; ++i) experts[i] = (i * 7 + rank) % kExperts;
    hepConfig_t config = HEP_CONFIG_INITIALIZER;
    config.backend = hepBackendHost;
    config.max_tokens = kTokens;
    config.low_latency_tokens = kTokens;
    config.hidden = kHidden;
    config.num_experts = kExperts;
    config.scale_bytes = kScaleBytes;
    hepComm_t comm = nullptr;
    expect(hepSuccess, hepCommInitRank(&comm, kRanks, &id, rank, &config), "hepCommInitRank");
    expect(hepSuccess, hepCommRegister(comm, nullptr, 0), "hepCommRegister");
    use_routing(comm, hepModeThroughput);
    use_routing(comm, hepModeLowLatency);
    expect(hepSuccess, hepCommDestroy(comm), "hepCommDestroy");
  }
};

void* run_rank(void* rank) {
  static_cast<Rank*>(rank)->run();
  return nullptr;
}

TEST(Stack, AThreadNeedsNoMoreThanTheHeaderSays) {
  hepUniqueId_t id;
  ASSERT_EQ(hepGetUniqueId(&id), hepSuccess) << hepGetLastError();
  pthread_attr_t attributes;
  ASSERT_EQ(pthread_attr_init(&attributes), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, kStackBytes), 0);

  std::vector<Rank> ranks(kRanks);
  std::vector<pthread_t> threads(kRanks);
  for (int r = 0; r < kRanks; ++r) {
    ranks[r].id = id;
    ranks[r].rank = r;
    ASSERT_EQ(pthread_create(&threads[r], &attributes, run_rank, &ranks[r]), 0);
  }
  for (const pthread_t thread : threads) EXPECT_EQ(pthread_join(thread, nullptr), 0);
  for (const Rank& rank : ranks) EXPECT_EQ(rank.failed, "") << "rank " << rank.rank;
  EXPECT_EQ(pthread_attr_destroy(&attributes), 0);
}

}  // namespace
