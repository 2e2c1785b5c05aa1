// SPDX-License-Identifier: Apache-2.0
// Ranks that leave while the others go on: by destroying, by the end of their process, and with
// forked children that outlive them or end before.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#include "crew.h"
#include "options.h"
#include "work.h"

namespace faults {
namespace {

constexpr int kLeaver = 1;
constexpr int kTimeoutMs = 40000;  // nothing here may take so long
constexpr int kNoticedMs = 8000;

enum Point { kReady = 1, kLeft, kDone };
enum Gate { kLeaveGate, kGoOnGate, kEndGate };

void require(bool condition, const std::string& text) {
  if (!condition) throw std::runtime_error(text);
}

hepResult_t async_error(hepComm_t comm) {
  hepResult_t error = hepErrorInternal;
  require(hepCommGetAsyncError(comm, &error) == hepSuccess, hepGetLastError());
  return error;
}

void come_to(Shared& shared, int rank, Point point) { shared.ranks[rank].point.store(point); }

// A communicator of all ranks that has worked once.
std::unique_ptr<Work> join(int rank, Shared& shared) {
  take_gpu(options().backend, rank);
  auto work = std::make_unique<Work>(options().backend, rank, options().num_ranks);
  if (rank == 0) {
    require(hepGetUniqueId(&shared.ids[0]) == hepSuccess, hepGetLastError());
    shared.id_ready[0].store(1);
  }
  while (shared.id_ready[0].load() == 0) std::this_thread::yield();
  require(work->start(shared.ids[0], {kTimeoutMs, kTimeoutMs}) == hepSuccess, hepGetLastError());
  const std::string wrong = work->check_round();
  require(wrong.empty(), wrong);
  come_to(shared, rank, kReady);
  return work;
}

// Those that stay: nothing is wrong until they need the one that left, and then at once.
void expect_left(int rank, Shared& shared, Work& work) {
  await_gate(shared, kGoOnGate);
  require(async_error(work.comm()) == hepSuccess, "a rank that left is no failure");
  come_to(shared, rank, kDone);
  for (int peer = 0; peer < options().num_ranks; ++peer)
    if (peer != kLeaver) await_point(shared, peer, kDone);
  const double begin = now_ms();
  hepResult_t result = work.issue(hepOperationRouting);
  if (result == hepSuccess) {
    work.synchronize();
    result = async_error(work.comm());
  }
  require(result == hepErrorPeerLost, std::string("the result is ") + hepGetErrorString(result));
  const std::string sentence = hepGetLastError();
  require(sentence.find("rank 1 has left") != std::string::npos, sentence);
  hepFailure_t failure = HEP_FAILURE_INITIALIZER;
  require(hepCommGetFailure(work.comm(), &failure) == hepSuccess, hepGetLastError());
  require(failure.missing_rank == kLeaver, sentence);
  shared.ranks[rank].report.milliseconds = now_ms() - begin;
  require(work.end() == hepSuccess, hepGetLastError());
}

void expect_no_complaints(Crew& crew, bool without_leaver = false) {
  for (int rank = 0; rank < options().num_ranks; ++rank) {
    if (without_leaver && rank == kLeaver) continue;
    EXPECT_TRUE(crew.ended(rank)) << "rank " << rank;
    const Report& report = crew.shared().ranks[rank].report;
    EXPECT_STREQ(report.complaint, "") << "rank " << rank;
    EXPECT_LT(report.milliseconds, kNoticedMs) << "rank " << rank;
  }
}

bool all_reach(Crew& crew, Point point) {
  bool reached = true;
  for (int rank = 0; rank < options().num_ranks; ++rank) reached &= crew.reach(rank, point);
  return reached;
}

TEST(Leaving, ByDestroyingEndsOnlyOperationsThatNeedTheRank) {
  Crew crew(options().num_ranks, [](int rank, Shared& shared) {
    const auto work = join(rank, shared);
    await_gate(shared, kLeaveGate);
    if (rank != kLeaver) return expect_left(rank, shared, *work);
    require(work->end() == hepSuccess, hepGetLastError());
    come_to(shared, rank, kLeft);
    await_gate(shared, kGoOnGate);
  });
  ASSERT_TRUE(all_reach(crew, kReady));
  crew.open(kLeaveGate);
  ASSERT_TRUE(crew.reach(kLeaver, kLeft));
  crew.open(kGoOnGate);
  expect_no_complaints(crew);
}

// The process of one rank ends by `end`. The others see that it has left, not that it failed.
void expect_leaves_by(void (*end)(std::unique_ptr<Work> work)) {
  Crew crew(options().num_ranks, [end](int rank, Shared& shared) {
    auto work = join(rank, shared);
    await_gate(shared, kLeaveGate);
    if (rank != kLeaver) return expect_left(rank, shared, *work);
    end(std::move(work));
  });
  ASSERT_TRUE(all_reach(crew, kReady));
  crew.open(kLeaveGate);
  ASSERT_TRUE(crew.ended(kLeaver));
  crew.open(kGoOnGate);
  expect_no_complaints(crew, true);
}

TEST(Leaving, ByTheRegularEndOfTheProcessDoesTheSame) {
  expect_leaves_by([](std::unique_ptr<Work> work) {
    work.release();
    std::exit(EXIT_SUCCESS);
  });
}

TEST(Leaving, ByDestroyingAtTheEndOfTheProcessIsSafe) {
  expect_leaves_by([](std::unique_ptr<Work> work) {
    static std::unique_ptr<Work> ended_by_static_destructor;
    ended_by_static_destructor = std::move(work);
    std::exit(EXIT_SUCCESS);
  });
}

TEST(Leaving, AForkedChildThatEndsDoesNotTakeLeaveForItsParent) {
  if (options().backend == hepBackendCuda) GTEST_SKIP() << "CUDA does not survive a fork";
  Crew crew(options().num_ranks, [](int rank, Shared& shared) {
    const auto work = join(rank, shared);
    const pid_t child = ::fork();
    if (child == 0) std::exit(EXIT_SUCCESS);
    require(::waitpid(child, nullptr, 0) == child, "no child");
    come_to(shared, rank, kDone);
    for (int peer = 0; peer < options().num_ranks; ++peer) await_point(shared, peer, kDone);
    const std::string wrong = work->check_round();
    require(wrong.empty(), wrong);
    await_gate(shared, kEndGate);
  });
  ASSERT_TRUE(all_reach(crew, kDone));
  crew.open(kEndGate);
  expect_no_complaints(crew);
}

TEST(Leaving, AForkedChildDoesNotHideThatItsParentIsGone) {
  Crew crew(options().num_ranks, [](int rank, Shared& shared) {
    const auto work = join(rank, shared);
    if (rank == kLeaver) {
      if (::fork() == 0) {
        await_gate(shared, kEndGate);
        ::_exit(EXIT_SUCCESS);
      }
      come_to(shared, rank, kLeft);
      await_gate(shared, kEndGate);  // killed here
    }
    await_gate(shared, kGoOnGate);
    const double begin = now_ms();
    while (async_error(work->comm()) == hepSuccess && now_ms() - begin < kPatienceMs)
      std::this_thread::yield();
    shared.ranks[rank].report.milliseconds = now_ms() - begin;
    require(async_error(work->comm()) == hepErrorPeerLost, hepGetLastError());
  });
  ASSERT_TRUE(all_reach(crew, kReady));
  ASSERT_TRUE(crew.reach(kLeaver, kLeft));
  crew.signal(kLeaver, SIGKILL);
  crew.open(kGoOnGate);
  expect_no_complaints(crew, true);
  crew.open(kEndGate);
}

}  // namespace
}  // namespace faults
