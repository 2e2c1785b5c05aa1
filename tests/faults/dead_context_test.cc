// SPDX-License-Identifier: Apache-2.0
// A CUDA context that dies, by a fault of a kernel that is not the library's or by a reset of the
// device, fails its communicators within a second. The peers are told, and destruction returns.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>

#include "crew.h"
#include "harness/device.h"
#include "harness/memory.h"
#include "work.h"

namespace faults {
namespace {

constexpr int kTimeoutMs = 40000;  // nothing here may take so long
constexpr int kToldMs = 1000;

enum Point { kReady = 1, kWaiting };

void require(bool condition, const std::string& text) {
  if (!condition) throw std::runtime_error(text);
}

// A communicator that has worked once. Never freed, because its buffers and streams go with the
// context.
Work& make_work(Shared& shared, int id, int rank, int num_ranks) {
  auto* const work = new Work(hepBackendCuda, rank, num_ranks);
  if (rank == 0) {
    require(hepGetUniqueId(&shared.ids[id]) == hepSuccess, hepGetLastError());
    shared.id_ready[id].store(1);
  }
  while (shared.id_ready[id].load() == 0) std::this_thread::yield();
  require(work->start(shared.ids[id], {kTimeoutMs, kTimeoutMs}) == hepSuccess, hepGetLastError());
  const std::string wrong = work->check_round();
  require(wrong.empty(), wrong);
  return *work;
}

// A kernel of the test's own reads where nothing is.
void fault(Shared& shared) {
  const void* const nowhere = reinterpret_cast<const void*>(uintptr_t{1} << 12);
  auto* const stream = new harness::Stream(hepBackendCuda);
  auto* const counter = new harness::Buffer(hepBackendCuda, sizeof(uint64_t));
  shared.fault_time.store(now_ms());
  stream->count_differences(nowhere, counter->data(), sizeof(uint64_t), counter->as<uint64_t>());
}

void reset(Shared& shared) {
  harness::device::reset();
  shared.fault_time.store(now_ms());
}

void end(Work& work) { require(work.end() == hepSuccess, hepGetLastError()); }

// Waits until the communicator has failed.
void await_failure(const Work& work, Shared& shared, int place) {
  Report& report = shared.ranks[place].report;
  const double begin = now_ms();
  while (report.result == hepSuccess && now_ms() - begin < kPatienceMs) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    require(hepCommGetAsyncError(work.comm(), &report.result) == hepSuccess, hepGetLastError());
  }
  report.milliseconds = now_ms() - shared.fault_time.load();
  std::snprintf(report.sentence, sizeof report.sentence, "%s", hepGetLastError());
  require(hepCommGetFailure(work.comm(), &report.failure) == hepSuccess, hepGetLastError());
}

void expect_told(const Report& report, int dead_rank, const std::string& reason) {
  EXPECT_EQ(report.result, hepErrorCuda) << report.sentence;
  EXPECT_NE(std::string(report.sentence).find(reason), std::string::npos) << report.sentence;
  EXPECT_NE(std::string(report.sentence).find("rank " + std::to_string(dead_rank)),
            std::string::npos)
      << report.sentence;
  EXPECT_EQ(report.failure.result, hepErrorCuda);
  EXPECT_EQ(report.failure.missing_rank, dead_rank);
  EXPECT_LT(report.milliseconds, kToldMs);
}

void expect_ended(Crew& crew, int rank) {
  EXPECT_TRUE(crew.ended(rank)) << "rank " << rank;
  EXPECT_STREQ(crew.shared().ranks[rank].report.complaint, "") << "rank " << rank;
}

class DeadContext : public testing::Test {
 protected:
  void SetUp() override {
    if (count_devices() == 0) GTEST_SKIP() << "there is no usable GPU";
  }
};

TEST_F(DeadContext, OfAFaultFailsEveryCommunicatorOfTheProcess) {
  Crew crew(1, [](int, Shared& shared) {
    Work& first = make_work(shared, 0, 0, 1);
    Work& second = make_work(shared, 1, 0, 1);
    fault(shared);
    await_failure(first, shared, 0);
    await_failure(second, shared, 1);
    end(first);
    end(second);
  });
  expect_ended(crew, 0);
  for (int place = 0; place < 2; ++place)
    expect_told(crew.shared().ranks[place].report, 0, "CUDA_ERROR_ILLEGAL_ADDRESS");
}

TEST_F(DeadContext, OfAFaultRefusesLaterCalls) {
  Crew crew(1, [](int, Shared& shared) {
    Work& work = make_work(shared, 0, 0, 1);
    fault(shared);
    await_failure(work, shared, 0);
    for (const auto operation : {hepOperationRouting, hepOperationDispatch, hepOperationCombine})
      require(work.issue(operation) == hepErrorCuda, hepGetLastError());
    end(work);
  });
  expect_ended(crew, 0);
}

TEST_F(DeadContext, OfAResetFailsItsCommunicator) {
  Crew crew(1, [](int, Shared& shared) {
    Work& work = make_work(shared, 0, 0, 1);
    reset(shared);
    await_failure(work, shared, 0);
    end(work);
  });
  expect_ended(crew, 0);
  expect_told(crew.shared().ranks[0].report, 0, "reset");
}

TEST_F(DeadContext, OfAResetIsNoneOfANewCommunicators) {
  Crew crew(1, [](int, Shared& shared) {
    Work& work = make_work(shared, 0, 0, 1);
    reset(shared);
    end(work);
    // On a thread that has no streams of the context before.
    std::string complaint;
    std::thread([&] {
      try {
        end(make_work(shared, 1, 0, 1));
      } catch (const std::exception& failure) {
        complaint = failure.what();
      }
    }).join();
    require(complaint.empty(), complaint);
  });
  expect_ended(crew, 0);
}

TEST_F(DeadContext, OfAFaultMayBeResetBeforeItsCommunicatorIsDestroyed) {
  Crew crew(1, [](int, Shared& shared) {
    Work& work = make_work(shared, 0, 0, 1);
    fault(shared);
    await_failure(work, shared, 0);
    reset(shared);
    end(work);
  });
  expect_ended(crew, 0);
  expect_told(crew.shared().ranks[0].report, 0, "CUDA_ERROR_ILLEGAL_ADDRESS");
}

// Two processes, each with a GPU of its own. A fault ends rank 1's context, while rank 0 is at rest
// or waits for rank 1 in an update.
void expect_peer_is_told(bool waits) {
  if (count_devices() < 2) GTEST_SKIP() << "needs two usable GPUs";
  Crew crew(2, [waits](int rank, Shared& shared) {
    take_gpu(hepBackendCuda, rank);
    Work& work = make_work(shared, 0, rank, 2);
    shared.ranks[rank].point.store(kReady);
    await_point(shared, 1 - rank, kReady);
    if (rank == 0 && waits)
      require(work.issue(hepOperationRouting) == hepSuccess, hepGetLastError());
    shared.ranks[rank].point.store(kWaiting);
    await_point(shared, 1 - rank, kWaiting);
    if (rank == 1) fault(shared);
    await_failure(work, shared, rank);
    if (rank == 0) work.synchronize();  // its own context is usable
    end(work);
    if (rank == 0) end(make_work(shared, 1, 0, 1));
  });
  for (int rank = 0; rank < 2; ++rank) {
    expect_ended(crew, rank);
    expect_told(crew.shared().ranks[rank].report, 1, "CUDA_ERROR_ILLEGAL_ADDRESS");
  }
}

TEST_F(DeadContext, OfARankIsToldToAPeerAtRest) { expect_peer_is_told(false); }

TEST_F(DeadContext, OfARankIsToldToAPeerThatWaitsForIt) { expect_peer_is_told(true); }

}  // namespace
}  // namespace faults
