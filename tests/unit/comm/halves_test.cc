// SPDX-License-Identifier: Apache-2.0
// Halves of operations on the host backend, where one thread can be all ranks: a first half waits
// for nobody, and a second half for the first ones alone.
#include <gtest/gtest.h>
#include <hybridep.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "harness/update.h"

namespace {

constexpr int kRanks = 2;
constexpr int kHidden = 4;  // of FP32
constexpr int kTopK = 2;
constexpr int kLanes = 4;
constexpr int kTimeoutMs = 60000;
constexpr int kShortTimeoutMs = 150;  // of operations that are to expire

#define ASSERT_HEP(call) ASSERT_EQ(call, hepSuccess) << hepGetLastError()
#define EXPECT_HEP(call) EXPECT_EQ(call, hepSuccess) << hepGetLastError()

using Ints = std::vector<int32_t>;
using Floats = std::vector<float>;

Floats rows_of(const Floats& values) {
  Floats rows;
  for (const float value : values) rows.insert(rows.end(), kHidden, value);
  return rows;
}

// What one rank gives to a batch, and what comes out of it. Experts 0 and 1 live on rank 0, 2 and 3
// on rank 1.
struct Batch {
  Batch(hepComm_t comm, int lane, const Ints& experts, const Floats& tokens)
      : indices(experts), x(rows_of(tokens)), rows(8 * kHidden, -1.0f), out(x.size(), -1.0f) {
    hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
    config.mode = hepModeLowLatency;
    config.lane = lane;
    EXPECT_HEP(hepRoutingCreate(&routing, comm, &config));
  }
  ~Batch() { EXPECT_HEP(hepRoutingDestroy(routing)); }
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  hepResult_t send_dispatch() {
    hepDispatchArgs_t args = HEP_DISPATCH_ARGS_INITIALIZER;
    args.layout = hepLayoutFlat;
    args.x = tokens;
    args.rows = rows.data();
    args.capacity = static_cast<int64_t>(rows.size()) / kHidden;
    const hepUpdate_t update = harness::make_update(
        indices.data(), static_cast<int64_t>(indices.size()) / kTopK, kTopK, hepIndexInt32);
    args.update = &update;
    return hepDispatchSend(routing, &args, nullptr);
  }
  hepResult_t receive_dispatch() { return hepDispatchReceive(routing, nullptr); }

  // Gives back what arrived: a token then gets as many times itself as it selected ranks.
  hepResult_t send_combine() {
    hepCombineArgs_t args = HEP_COMBINE_ARGS_INITIALIZER;
    args.layout = hepLayoutFlat;
    args.y = rows.data();
    args.capacity = static_cast<int64_t>(rows.size()) / kHidden;
    args.out = out.data();
    return hepCombineSend(routing, &args, nullptr);
  }
  hepResult_t receive_combine() { return hepCombineReceive(routing, nullptr); }

  Floats arrived(int count) const { return Floats(rows.begin(), rows.begin() + count * kHidden); }

  hepRouting_t routing = nullptr;
  const Ints indices;
  const Floats x;
  const float* tokens = x.data();
  Floats rows, out;
};

class Halves : public ::testing::Test {
 protected:
  void SetUp() override { create(kTimeoutMs); }
  void TearDown() override {
    for (hepComm_t comm : comms_) EXPECT_HEP(hepCommDestroy(comm));
  }

  void create(int timeout_ms) {
    hepConfig_t config = HEP_CONFIG_INITIALIZER;
    config.backend = hepBackendHost;
    config.type = hepTypeFloat32;
    config.partial_type = hepTypeFloat32;
    config.max_tokens = 8;
    config.low_latency_tokens = 4;
    config.hidden = kHidden;
    config.num_experts = 4;
    config.max_top_k = kTopK;
    config.heap_bytes = 4096;
    config.timeout_ms = timeout_ms;
    config.init_timeout_ms = kTimeoutMs;
    ASSERT_HEP(hepCommInitAll(comms_, kRanks, nullptr, &config));
  }

  hepComm_t comms_[kRanks] = {};
};

TEST_F(Halves, OneThreadCanBeAllRanks) {
  Batch a(comms_[0], 0, {0, 2, /**/ 3, -1}, {1, 2}), b(comms_[1], 0, {2, 2, /**/ 1, 3}, {4, 8});
  for (int round = 0; round < 3; ++round) {
    SCOPED_TRACE(round);
    for (Batch* batch : {&a, &b}) ASSERT_HEP(batch->send_dispatch());
    for (Batch* batch : {&a, &b}) ASSERT_HEP(batch->receive_dispatch());
    EXPECT_EQ(a.arrived(2), rows_of({1, 8}));
    EXPECT_EQ(b.arrived(4), rows_of({1, 2, 4, 8}));
    for (Batch* batch : {&b, &a}) ASSERT_HEP(batch->send_combine());
    for (Batch* batch : {&a, &b}) ASSERT_HEP(batch->receive_combine());
    EXPECT_EQ(a.out, rows_of({2, 2}));
    EXPECT_EQ(b.out, rows_of({4, 16}));
  }
}

TEST_F(Halves, TokensInTheHeapAreTheCallersAgainAfterTheSecondHalf) {
  Batch a(comms_[0], 0, {3, -1}, {5}), b(comms_[1], 0, {3, -1}, {6});
  void* heap;
  ASSERT_HEP(hepMemAlloc(comms_[0], a.x.size() * sizeof(float), &heap));
  float* x = static_cast<float*>(heap);
  std::copy(a.x.begin(), a.x.end(), x);
  a.tokens = x;
  for (Batch* batch : {&a, &b}) ASSERT_HEP(batch->send_dispatch());
  ASSERT_HEP(a.receive_dispatch());
  std::fill_n(x, a.x.size(), 0.0f);
  ASSERT_HEP(b.receive_dispatch());
  EXPECT_EQ(b.arrived(2), rows_of({5, 6}));
}

TEST_F(Halves, FourBatchesAreUnderWayAtOnceInAnOrderOfEachRanksOwn) {
  std::vector<std::unique_ptr<Batch>> batches[kRanks];
  for (int lane = 0; lane < kLanes; ++lane) {
    const float value = 1 << lane;
    batches[0].push_back(
        std::make_unique<Batch>(comms_[0], lane, Ints{2, 1, 0, -1}, Floats{value, 100 * value}));
    batches[1].push_back(
        std::make_unique<Batch>(comms_[1], lane, Ints{3, lane % 4}, Floats{10 * value}));
  }
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < kLanes; ++i) ASSERT_HEP(batches[0][i]->send_dispatch());
    for (int i = kLanes - 1; i >= 0; --i) ASSERT_HEP(batches[1][i]->send_dispatch());
    for (const int i : {2, 0, 3, 1}) ASSERT_HEP(batches[0][i]->receive_dispatch());
    for (const int i : {1, 3}) ASSERT_HEP(batches[1][i]->receive_dispatch());
    // Two lanes combine while the others have yet to receive.
    for (const int i : {3, 1}) ASSERT_HEP(batches[1][i]->send_combine());
    for (const int i : {0, 2}) ASSERT_HEP(batches[1][i]->receive_dispatch());
    for (const int i : {0, 1, 2, 3}) ASSERT_HEP(batches[0][i]->send_combine());
    for (const int i : {0, 2}) ASSERT_HEP(batches[1][i]->send_combine());
    for (int rank = 0; rank < kRanks; ++rank)
      for (const int i : {3, 2, 1, 0}) ASSERT_HEP(batches[rank][i]->receive_combine());
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = 1 << lane;
      EXPECT_EQ(batches[0][lane]->out, rows_of({2 * value, 100 * value})) << lane;
      // Expert 3 is rank 1's; experts 0 and 1 are rank 0's.
      EXPECT_EQ(batches[1][lane]->out, rows_of({lane < 2 ? 20 * value : 10 * value})) << lane;
    }
  }
}

TEST_F(Halves, AFirstHalfWaitsUntilPeersHaveReadWhatWasSentBefore) {
  Batch a(comms_[0], 0, {3, -1}, {5}), b(comms_[1], 0, {-1, -1}, {6});
  ASSERT_HEP(a.send_dispatch());
  ASSERT_HEP(b.send_dispatch());
  ASSERT_HEP(a.receive_dispatch());
  const Floats later = rows_of({7});
  a.tokens = later.data();
  std::thread again([&a] { EXPECT_HEP(a.send_dispatch()); });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // time enough to overwrite them
  EXPECT_HEP(b.receive_dispatch());
  EXPECT_EQ(b.arrived(1), rows_of({5}));
  again.join();
  ASSERT_HEP(b.send_dispatch());
  ASSERT_HEP(b.receive_dispatch());
  ASSERT_HEP(a.receive_dispatch());
  EXPECT_EQ(b.arrived(1), rows_of({7}));
}

class HalvesThatFail : public Halves {
 protected:
  void SetUp() override { create(kShortTimeoutMs); }
};

TEST_F(HalvesThatFail, NameTheLaneAndThePeerThatDidNotSend) {
  Batch batch(comms_[0], 2, {0, 2}, {1});
  ASSERT_HEP(batch.send_dispatch());
  EXPECT_EQ(batch.receive_dispatch(), hepErrorTimeout);
  const std::string sentence = hepGetLastError();
  EXPECT_NE(sentence.find("routing update 1 of low-latency lane 2"), std::string::npos) << sentence;
  EXPECT_NE(sentence.find("rank 1"), std::string::npos) << sentence;
  hepFailure_t failure = HEP_FAILURE_INITIALIZER;
  ASSERT_HEP(hepCommGetFailure(comms_[0], &failure));
  EXPECT_EQ(failure.result, hepErrorTimeout);
  EXPECT_EQ(failure.operation, hepOperationRouting);
  EXPECT_EQ(failure.phase, hepPhaseRecords);
  EXPECT_EQ(failure.missing_rank, 1);
  EXPECT_EQ(failure.mode, hepModeLowLatency);
  EXPECT_EQ(failure.lane, 2);
  EXPECT_EQ(failure.number, 1u);
}

TEST_F(HalvesThatFail, EndTheCommunicatorOnAllLanes) {
  Batch stuck(comms_[0], 0, {0, 2}, {1}), other(comms_[0], 1, {0, 2}, {1});
  ASSERT_HEP(stuck.send_dispatch());
  ASSERT_HEP(other.send_dispatch());
  EXPECT_EQ(stuck.receive_dispatch(), hepErrorTimeout);
  EXPECT_EQ(other.receive_dispatch(), hepErrorTimeout);
  EXPECT_EQ(other.send_combine(), hepErrorTimeout);
}  // routings between their halves can be destroyed now

}  // namespace
