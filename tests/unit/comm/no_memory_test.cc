// SPDX-License-Identifier: Apache-2.0
// Memory that runs out inside a call. Operations of the host backend ask for none; what one would
// do is tested with its backend. A registration asks for some.
#include <gtest/gtest.h>
#include <hybridep.h>

#include <cstdint>
#include <cstdlib>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "harness/update.h"

// How many more allocations of this thread succeed; -1: all do.
static thread_local long allocations_left = -1;
static thread_local bool has_refused = false;

[[gnu::noinline]] void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  if (allocations_left >= 0 && allocations_left-- == 0) {
    has_refused = true;
    return nullptr;
  }
  return std::malloc(bytes);
}
[[gnu::noinline]] void* operator new(size_t bytes) {
  if (void* const memory = operator new(bytes, std::nothrow)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace hep {
namespace {

constexpr int kRanks = 2, kTokens = 3, kHidden = 8, kTopK = 2, kCapacity = kRanks * kTokens * kTopK;
constexpr int kBatches = 3, kHitBatch = 1;
enum Step { kUpdate, kDispatch, kCombine, kSteps };

// One rank, whose tokens go to both of the other's and its own experts.
class Rank {
 public:
  explicit Rank(hepComm_t comm) : comm_(comm) {
    EXPECT_EQ(hepRoutingCreate(&routing_, comm, nullptr), hepSuccess) << hepGetLastError();
    for (int t = 0; t < kTokens; ++t) indices_[t * kTopK] = t % kRanks, indices_[t * kTopK + 1] = 2;
  }
  ~Rank() {
    EXPECT_EQ(hepRoutingDestroy(routing_), hepSuccess);
    EXPECT_EQ(hepCommDestroy(comm_), hepSuccess);
  }
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;

  // In one batch, allocation `n` of a step fails.
  void run(int hit_step, long n) {
    for (int batch = 0; batch < kBatches && result == hepSuccess; ++batch)
      for (int step = 0; step < kSteps && result == hepSuccess; ++step)
        step_once(step, batch, batch == kHitBatch && step == hit_step ? n : -1);
    if (result != hepSuccess) sentence = hepGetLastError();
  }

  bool refused = false;  // an allocation
  hepResult_t result = hepSuccess;
  std::string sentence;
  int wrong = 0;

 private:
  void step_once(int step, int batch, long n) {
    if (step == kDispatch) x_.assign(kTokens * kHidden, static_cast<float>(1 + batch));
    has_refused = false;
    allocations_left = n;
    result = call(step);
    allocations_left = -1;
    refused |= has_refused;
    if (result != hepSuccess && has_refused) {
      hepCommGetAsyncError(comm_, &result);
      if (result == hepSuccess) result = call(step);
    }
    if (step == kCombine && result == hepSuccess)
      for (const float sum : out_) wrong += sum != static_cast<float>(kTopK * (1 + batch));
  }

  hepResult_t call(int step) {
    if (step == kUpdate)
      return harness::update_routing(routing_, indices_, kTokens, kTopK, hepIndexInt32, nullptr);
    if (step == kDispatch) {
      hepDispatchArgs_t args = HEP_DISPATCH_ARGS_INITIALIZER;
      args.layout = hepLayoutExpertMajor;

      args.x = x_.data();
      args.rows = rows_.data();
      args.capacity = kCapacity;
      return hepDispatch(routing_, &args, nullptr);
    }
    hepCombineArgs_t args = HEP_COMBINE_ARGS_INITIALIZER;
    args.layout = hepLayoutExpertMajor;

    args.y = rows_.data();
    args.capacity = kCapacity;
    args.out = out_.data();
    return hepCombine(routing_, &args, nullptr);
  }

  hepComm_t comm_;
  hepRouting_t routing_ = nullptr;
  int32_t indices_[kTokens * kTopK];
  std::vector<float> x_, rows_ = std::vector<float>(kCapacity * kHidden),
                         out_ = std::vector<float>(kTokens * kHidden);
};

class NoMemory : public testing::TestWithParam<int> {};

hepConfig_t small_config() {
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.backend = hepBackendHost;
  config.max_tokens = kTokens;
  config.hidden = kHidden;
  config.num_experts = 4;
  config.max_top_k = kTopK;
  config.type = hepTypeFloat32;
  config.timeout_ms = 30000;
  return config;
}

TEST_P(NoMemory, IsNoMatterToACallWhichAllocatesNothing) {
  const hepConfig_t config = small_config();
  hepComm_t comms[kRanks];
  ASSERT_EQ(hepCommInitAll(comms, kRanks, nullptr, &config), hepSuccess) << hepGetLastError();
  Rank hit(comms[0]), other(comms[1]);
  std::thread of_other([&] { other.run(kUpdate, -1); });
  hit.run(GetParam(), 0);
  of_other.join();
  EXPECT_FALSE(hit.refused) << "the call has asked for memory";
  EXPECT_EQ(hit.result, hepSuccess) << hit.sentence;
  EXPECT_EQ(other.result, hepSuccess) << other.sentence;
  EXPECT_EQ(hit.wrong + other.wrong, 0);
}

// Registers memory on two ranks, the first of which has memory for `n` allocations. Returns whether
// it asked for more.
bool register_with(long n, hepResult_t results[kRanks]) {
  const hepConfig_t config = small_config();
  hepComm_t comms[kRanks];
  EXPECT_EQ(hepCommInitAll(comms, kRanks, nullptr, &config), hepSuccess) << hepGetLastError();
  static char memory[kRanks][64];
  std::thread of_other(
      [&] { results[1] = hepCommRegister(comms[1], memory[1], sizeof memory[1]); });
  has_refused = false;
  allocations_left = n;
  results[0] = hepCommRegister(comms[0], memory[0], sizeof memory[0]);
  allocations_left = -1;
  of_other.join();
  for (const hepComm_t comm : comms) EXPECT_EQ(hepCommDestroy(comm), hepSuccess);
  return has_refused;
}

TEST(NoMemoryForARegistration, FailsItOnAllRanksAtOnce) {
  hepResult_t results[kRanks];
  long n = 0;
  for (; register_with(n, results); ++n) {
    EXPECT_EQ(results[0], hepErrorOutOfMemory) << "allocation " << n;
    EXPECT_EQ(results[1], hepErrorOutOfMemory) << "allocation " << n;
  }
  EXPECT_GT(n, 0) << "a registration allocates nothing, so this test shows nothing";
  EXPECT_EQ(results[0], hepSuccess);
  EXPECT_EQ(results[1], hepSuccess);
}

TEST(NoMemoryHook, RefusesTheAllocationItIsSetTo) {
  allocations_left = 1;
  ::operator delete(::operator new(1));
  EXPECT_THROW(::operator delete(::operator new(1)), std::bad_alloc);
  allocations_left = -1;
}

INSTANTIATE_TEST_SUITE_P(EveryCall, NoMemory, testing::Values(kUpdate, kDispatch, kCombine));

}  // namespace
}  // namespace hep
