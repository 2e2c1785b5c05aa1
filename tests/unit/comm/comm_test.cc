// SPDX-License-Identifier: Apache-2.0
// Communicators come to be, or fail to, on the host backend: what callbacks throw, what threads
// cannot do, and what is left afterwards.
#include <hybridep.h>

#include <atomic>
#include <cstring>
#include <new>
#include <stdexcept>

#include "backend/backend.h"
#include "base/log.h"
#include "base/rank_threads.h"
#include "comm/routing.h"
#include "config/ranks.h"
#include "harness/update.h"
#include "unit/bootstrap/bootstrap_fixture.h"

namespace hep {
namespace {

hepConfig_t small_config() {
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.backend = hepBackendHost;
  config.max_tokens = 8;
  config.hidden = 64;
  config.num_experts = 12;
  config.timeout_ms = config.init_timeout_ms = kLongMs;
  return config;
}

using CommTest = BootstrapTest;

// ----------------------------------------------------------------------------------------- ranks

TEST(Ranks, OutOfRangeAreNamedWithTheRange) {
  EXPECT_TRUE(check_num_ranks(1).ok());
  EXPECT_TRUE(check_num_ranks(72).ok());
  expect_error(check_num_ranks(0), hepErrorInvalidArgument, {"num_ranks is 0", "1 to 72"});
  expect_error(check_num_ranks(73), hepErrorInvalidArgument, {"num_ranks is 73", "1 to 72"});
  EXPECT_TRUE(check_rank(0, 1).ok());
  EXPECT_TRUE(check_rank(71, 72).ok());
  expect_error(check_rank(4, 4), hepErrorInvalidArgument, {"rank is 4", "0 to 3"});
  expect_error(check_rank(-1, 4), hepErrorInvalidArgument, {"rank is -1", "0 to 3"});
  expect_error(check_rank(0, 0), hepErrorInvalidArgument, {"num_ranks is 0"});
}

TEST(RankThreads, RunEveryRankAtTheSameTimeAndKeepItsStatus) {
  std::atomic<int> arrived{0};
  const vector<Status> statuses = run_rank_threads(3, [&](int rank) {
    ++arrived;
    EXPECT_TRUE(comes_true([&] { return arrived == 3; }));
    return rank == 1 ? error(hepErrorCuda, "rank %d", rank) : Status();
  });
  ASSERT_EQ(statuses.size(), 3u);
  EXPECT_TRUE(statuses[0].ok());
  expect_error(statuses[1], hepErrorCuda, {"rank 1"});
  EXPECT_TRUE(statuses[2].ok());
}

TEST(RankThreads, TurnWhatABodyThrowsIntoItsStatus) {
  const vector<Status> statuses = run_rank_threads(4, [](int rank) -> Status {
    if (rank == 0) throw std::bad_alloc();
    if (rank == 1) throw std::runtime_error("a long sentence about what went wrong");
    if (rank == 2) throw 17;
    return Status();
  });
  EXPECT_EQ(statuses[0].result(), hepErrorOutOfMemory);
  EXPECT_EQ(statuses[1].result(), hepErrorInternal);
  EXPECT_EQ(statuses[2].result(), hepErrorInternal);
  EXPECT_TRUE(statuses[3].ok());
}

TEST(RankThreads, ThatCannotBeStartedAreASystemError) {
  const NoThreads no_threads;
  const vector<Status> statuses = run_rank_threads(2, [](int) { return Status(); });
  expect_error(statuses[0], hepErrorSystem, {"rank 0", "thread"});
  expect_error(statuses[1], hepErrorSystem, {"rank 1", "thread"});
}

TEST(RankThreads, TheMostTellingErrorIsOneThatIsNotAboutMissingAPeer) {
  const Status timeout = error(hepErrorTimeout, "missed"), lost = error(hepErrorPeerLost, "lost");
  const Status first = error(hepErrorSystem, "first"), second = error(hepErrorCuda, "second");
  EXPECT_TRUE(most_telling({Status(), Status()}).ok());
  EXPECT_EQ(most_telling({timeout, lost, first, second}).message(), "first");
  EXPECT_EQ(most_telling({Status(), lost, timeout}).message(), "lost");
}

// ------------------------------------------------------------------------------------- callbacks

TEST_F(CommTest, ACallbackMayThrowAnything) {
  const hepConfig_t config = small_config();
  hepComm_t comm = nullptr;
  const hepAllGather_t throws_number = [](const void*, void*, size_t, void*) -> int { throw 17; };
  EXPECT_EQ(hepCommInitCallback(&comm, 1, 0, throws_number, nullptr, &config), hepErrorInternal);
  EXPECT_STRNE(hepGetLastError(), "");
  const hepAllGather_t throws_text = [](const void*, void*, size_t, void*) -> int {
    throw std::runtime_error("the store is down");
  };
  EXPECT_EQ(hepCommInitCallback(&comm, 1, 0, throws_text, nullptr, &config), hepErrorInternal);
  EXPECT_STREQ(hepGetLastError(), "the store is down");
  EXPECT_EQ(comm, nullptr);
}

TEST_F(CommTest, ARankWithoutAPlaceForItsCommunicatorDoesNotLeaveTheOthersWaiting) {
  ThreadGather group(3);
  on_threads(3, [&](int rank) {
    ThreadGather::Member member{&group, rank};
    const hepConfig_t config = small_config();
    hepComm_t comm = nullptr;
    EXPECT_EQ(hepCommInitCallback(rank == 2 ? nullptr : &comm, 3, rank, ThreadGather::gather,
                                  &member, &config),
              hepErrorInvalidArgument);
    EXPECT_NE(string(hepGetLastError()).find("comm is NULL"), string::npos) << hepGetLastError();
    EXPECT_EQ(member.calls, 1);
    EXPECT_EQ(comm, nullptr);
  });
}

TEST_F(CommTest, CreationWaitsAsLongAsItsOwnTimeoutAndNotAsThatOfOperations) {
  hepConfig_t config = small_config();
  const hepUniqueId_t lonely = new_id(), id = new_id();
  hepComm_t comm = nullptr;
  config.init_timeout_ms = 100;
  const Deadline soon = Deadline::after_ms(5000);
  EXPECT_EQ(hepCommInitRank(&comm, 2, &lonely, 0, &config), hepErrorTimeout);
  EXPECT_FALSE(soon.expired());
  config.init_timeout_ms = kLongMs;
  config.timeout_ms = 1;
  on_threads(2, [&](int rank) {
    if (rank == 1) ::poll(nullptr, 0, 20);  // the other waits longer than timeout_ms
    hepComm_t created = nullptr;
    EXPECT_EQ(hepCommInitRank(&created, 2, &id, rank, &config), hepSuccess) << hepGetLastError();
    EXPECT_EQ(hepCommDestroy(created), hepSuccess);
  });
}

TEST_F(CommTest, ARankWithABadConfigWaitsForItsPeersNoLongerThanItsTimeout) {
  hepConfig_t config = small_config();
  config.hidden = 12;
  config.init_timeout_ms = 100;
  const hepUniqueId_t id = new_id();
  hepComm_t comm = nullptr;
  const Deadline soon = Deadline::after_ms(5000);
  EXPECT_EQ(hepCommInitRank(&comm, 2, &id, 0, &config), hepErrorInvalidArgument);
  EXPECT_FALSE(soon.expired());
}

TEST_F(CommTest, IsMadeOfWhatThereIsWhereItMayChoose) {
  hepConfig_t config = small_config();
  config.backend = hepBackendAuto;
  hepComm_t comm = nullptr;
  ASSERT_EQ(hepCommInitAll(&comm, 1, nullptr, &config), hepSuccess) << hepGetLastError();
  hepBackend_t backend = hepBackendAuto;
  EXPECT_EQ(hepCommBackend(comm, &backend), hepSuccess);
  int device = -1;
  EXPECT_EQ(backend, find_cuda_device(&device).ok() ? hepBackendCuda : hepBackendHost);
  EXPECT_EQ(hepCommDestroy(comm), hepSuccess);
}

TEST_F(CommTest, NothingIsLeftInThePlaceOfACommunicatorThatIsNotMade) {
  hepConfig_t config = small_config();
  config.hidden = 12;
  const auto stale = reinterpret_cast<hepComm_t>(this);
  const hepUniqueId_t id = new_id();
  hepComm_t comms[2] = {stale, stale};
  EXPECT_EQ(hepCommInitAll(comms, 2, nullptr, &config), hepErrorInvalidArgument);
  EXPECT_EQ(comms[0], nullptr);
  EXPECT_EQ(comms[1], nullptr);
  comms[0] = stale;
  EXPECT_EQ(hepCommInitRank(&comms[0], 1, &id, 0, &config), hepErrorInvalidArgument);
  EXPECT_EQ(comms[0], nullptr);
  const hepAllGather_t copy = [](const void* send, void* receive, size_t bytes, void*) {
    std::memcpy(receive, send, bytes);
    return 0;
  };
  comms[0] = stale;
  EXPECT_EQ(hepCommInitCallback(&comms[0], 1, 0, copy, nullptr, &config), hepErrorInvalidArgument);
  EXPECT_EQ(comms[0], nullptr);
}

// ------------------------------------------------------------------------------------------ heap

TEST_F(CommTest, AHeapOfAnySizeHoldsThatManyBytes) {
  hepConfig_t config = small_config();
  for (const int64_t bytes : {1, 255, 257, 1000}) {
    config.heap_bytes = bytes;
    hepComm_t comm = nullptr;
    ASSERT_EQ(hepCommInitAll(&comm, 1, nullptr, &config), hepSuccess) << hepGetLastError();
    void* block = nullptr;
    EXPECT_EQ(hepMemAlloc(comm, bytes, &block), hepSuccess) << hepGetLastError();
    EXPECT_EQ(hepMemFree(comm, block), hepSuccess);
    EXPECT_EQ(hepCommDestroy(comm), hepSuccess);
  }
}

// -------------------------------------------------------------------------------------- messages

void count(hepLogLevel_t, const char*, void* context) {
  ++*static_cast<std::atomic<int>*>(context);
}

void expect_on_standard_error(const char* text) {
  testing::internal::CaptureStderr();
  log_message(hepLogError, "%s", text);
  EXPECT_NE(testing::internal::GetCapturedStderr().find(text), string::npos);
}

TEST_F(CommTest, ItsLogCallbackLivesAsLongAsItDoes) {
  std::atomic<int> messages{0};
  hepConfig_t config = small_config();
  config.log = count;
  config.log_context = &messages;
  hepComm_t comms[2] = {};
  ASSERT_EQ(hepCommInitAll(comms, 2, nullptr, &config), hepSuccess) << hepGetLastError();
  int before = messages;
  log_message(hepLogError, "to the callback");
  EXPECT_EQ(messages, before + 1);
  EXPECT_EQ(hepCommDestroy(comms[1]), hepSuccess);
  before = messages;
  log_message(hepLogError, "to that of the other communicator");
  EXPECT_EQ(messages, before + 1);
  EXPECT_EQ(hepCommDestroy(comms[0]), hepSuccess);
  before = messages;
  expect_on_standard_error("after the last");
  EXPECT_EQ(messages, before);
}

TEST_F(CommTest, AFailedInitKeepsNoLogCallback) {
  std::atomic<int> messages{0};
  hepConfig_t config = small_config();
  config.log = count;
  config.log_context = &messages;
  config.init_timeout_ms = 100;
  const hepUniqueId_t id = new_id();
  hepComm_t comm = nullptr;
  EXPECT_EQ(hepCommInitRank(&comm, 2, &id, 0, &config), hepErrorTimeout);
  const int before = messages;
  expect_on_standard_error("after the failure");
  EXPECT_EQ(messages, before);
}

// Enqueues one of two launches.
struct HalfDone final : BackendRouting {
  Status update(const TopK&, hepStream_t) override {
    return error(hepErrorCuda, "no second launch");
  }
  Status dispatch(const DispatchRequest&, const Batch&, Step, hepStream_t) override {
    return Status();
  }
  Status combine(const hepCombineArgs_t&, const Batch&, Step, hepStream_t) override {
    return Status();
  }
  bool has_begun() const override { return true; }
  Status query(hepRoutingCounts_t*, hepStream_t) override { return Status(); }
  const void* memory() const override { return nullptr; }
};

TEST(Operations, ThatHaveBegunAndFailFailTheCommunicatorOnAllRanks) {
  hepConfig_t config = small_config();
  hepComm_t comms[2];
  ASSERT_EQ(hepCommInitAll(comms, 2, nullptr, &config), hepSuccess) << hepGetLastError();
  hepComm_t comm = comms[0];
  ASSERT_TRUE(check_comm(comm).ok());
  const hepRouting_t routing = release_to_caller(std::make_unique<hepRouting>(
      *comm, 0, comm->lane(0).routing_layout, std::make_unique<HalfDone>()));
  EXPECT_EQ(harness::update_routing(routing, nullptr, 0, 1, hepIndexInt32, nullptr), hepErrorCuda);
  for (const hepComm_t each : comms) {
    hepResult_t result = hepSuccess;
    EXPECT_EQ(hepCommGetAsyncError(each, &result), hepSuccess);
    EXPECT_EQ(result, hepErrorCuda);
    expect_error({result, hepGetLastError()}, hepErrorCuda, {"no second launch", "rank 0"});
  }
  EXPECT_EQ(hepRoutingDestroy(routing), hepSuccess) << hepGetLastError();
  for (const hepComm_t each : comms) EXPECT_EQ(hepCommDestroy(each), hepSuccess);
}

// What a thread does that is to be cancelled amid a call.
struct CancelledCall {
  hepRouting_t routing;
  std::atomic<bool> begun{false};
  hepResult_t result = hepSuccess;

  static void* run(void* context) {
    auto* self = static_cast<CancelledCall*>(context);
    self->begun = true;
    self->result = harness::update_routing(self->routing, nullptr, 0, 1, hepIndexInt32, nullptr);
    ::pthread_testcancel();
    return nullptr;
  }
};

TEST(Cancellation, IsHeldOffUntilTheCallReturns) {
  hepConfig_t config = small_config();
  config.timeout_ms = kShortMs;
  hepComm_t comms[2];
  ASSERT_EQ(hepCommInitAll(comms, 2, nullptr, &config), hepSuccess) << hepGetLastError();
  CancelledCall call{};
  ASSERT_EQ(hepRoutingCreate(&call.routing, comms[0], nullptr), hepSuccess) << hepGetLastError();
  pthread_t thread;
  ASSERT_EQ(::pthread_create(&thread, nullptr, CancelledCall::run, &call), 0);
  EXPECT_TRUE(comes_true([&] { return call.begun.load(); }));
  EXPECT_EQ(::pthread_cancel(thread), 0);
  void* end = nullptr;
  EXPECT_EQ(::pthread_join(thread, &end), 0);
  EXPECT_EQ(end, PTHREAD_CANCELED);
  EXPECT_EQ(call.result, hepErrorTimeout);
  EXPECT_EQ(hepRoutingDestroy(call.routing), hepSuccess);
  for (const hepComm_t comm : comms) EXPECT_EQ(hepCommDestroy(comm), hepSuccess);
}

TEST(Handles, DoNotComeAgain) {
  hepConfig_t config = small_config();
  hepComm_t old = nullptr, fresh = nullptr;
  ASSERT_EQ(hepCommInitAll(&old, 1, nullptr, &config), hepSuccess) << hepGetLastError();
  ASSERT_EQ(hepCommDestroy(old), hepSuccess);
  ASSERT_EQ(hepCommInitAll(&fresh, 1, nullptr, &config), hepSuccess) << hepGetLastError();
  hepRouting_t stale = nullptr, live = nullptr;
  ASSERT_EQ(hepRoutingCreate(&stale, fresh, nullptr), hepSuccess) << hepGetLastError();
  ASSERT_EQ(hepRoutingDestroy(stale), hepSuccess);
  ASSERT_EQ(hepRoutingCreate(&live, fresh, nullptr), hepSuccess) << hepGetLastError();
  EXPECT_EQ(hepRoutingDestroy(stale), hepErrorInvalidArgument);
  EXPECT_EQ(hepRoutingDestroy(live), hepSuccess) << hepGetLastError();
  EXPECT_EQ(hepCommDestroy(old), hepErrorInvalidArgument);
  EXPECT_EQ(hepCommDestroy(fresh), hepSuccess) << hepGetLastError();
}

}  // namespace
}  // namespace hep
