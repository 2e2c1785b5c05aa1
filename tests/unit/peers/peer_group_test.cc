// SPDX-License-Identifier: Apache-2.0
// What the ranks of one process hear of each other.
#include "peers/group.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

// While it is set, threads get no memory, but for those of the tests.
static std::atomic<bool> no_memory{false};
static std::atomic<int> times_refused{0};
static thread_local bool is_of_test = false;

[[gnu::noinline]] void* operator new(size_t bytes) {
  if (no_memory && !is_of_test) {
    ++times_refused;
    throw std::bad_alloc();
  }
  if (void* const memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace hep {
namespace {

class NoMemory {
 public:
  NoMemory() {
    is_of_test = true;
    times_refused = 0;
    no_memory = true;
  }
  ~NoMemory() { ends(); }
  void ends() const { no_memory = is_of_test = false; }
};

template <typename Condition>
bool comes_true(Condition condition) {
  for (int tries = 0; tries < 10000 && !condition(); ++tries) ::poll(nullptr, 0, 1);
  return condition();
}

struct Counter final : PeerListener {
  void peer_left(int) noexcept override { ++left; }
  void peer_lost(int) override { ++lost; }
  void peer_failed(const PeerFailure&) override { ++failed; }
  bool poll_local_failure(PeerFailure*) override {
    ++looks;
    return false;
  }
  std::atomic<int> left{0}, lost{0}, failed{0}, looks{0};
};

TEST(PeerGroup, TellsARankThatBeginsLaterWhatHasHappened) {
  PeerGroup group({7, 7, 7}, 0);
  Counter early, late;
  group.subscribe(0, early, false);
  group.report({0, hepErrorTimeout, 2, "rank 0: timeout"});
  group.subscribe(1, late, false);
  EXPECT_EQ(late.failed, 1);
  EXPECT_EQ(early.failed, 0) << "a rank is not told of itself";
  group.unsubscribe(0);
  group.unsubscribe(1);
}

TEST(PeerGroup, HasNoNewsOfARankThatHasLeft) {
  PeerGroup group({7, 7}, 0);
  Counter leaving, staying;
  group.subscribe(0, leaving, false);
  group.subscribe(1, staying, false);
  group.leave(0);
  group.report({0, hepErrorTimeout, 1, "rank 0: timeout"});
  EXPECT_EQ(staying.left, 1);
  EXPECT_EQ(staying.failed, 0);
  group.unsubscribe(0);
  group.unsubscribe(1);
}

TEST(PeerGroup, CallsNobodyAnyMoreOnceTheProcessExits) {
  PeerGroup group({7, 7, 8}, 0);
  ASSERT_TRUE(group.start_thread().ok());
  Counter own, other;
  group.subscribe(0, own, true);
  group.subscribe(1, other, true);
  const auto looked = [&] { return own.looks > 0 && other.looks > 0; };
  for (int tries = 0; tries < 10000 && !looked(); ++tries) ::poll(nullptr, 0, 1);
  EXPECT_TRUE(looked());
  group.leave_at_exit();
  const int looks = own.looks + other.looks;
  group.report({1, hepErrorTimeout, 0, "rank 1: timeout"});
  ::poll(nullptr, 0, 200);  // several looks around
  EXPECT_EQ(own.looks + other.looks, looks);
  EXPECT_EQ(own.failed, 0);
}

TEST(PeerGroup, TakesAFailureWithoutAResultForTheEndOfAPeerThatCannotBeTrusted) {
  PeerGroup own({1, 2}, 0), peer({1, 2}, 1);
  ASSERT_TRUE(own.open().ok());
  ASSERT_TRUE(peer.open().ok());
  const std::vector<LinkAddress> addresses{own.address(), peer.address()};
  const Deadline deadline = Deadline::after_ms(10000);
  std::thread other([&] { EXPECT_TRUE(peer.connect(addresses, deadline).ok()); });
  EXPECT_TRUE(own.connect(addresses, deadline).ok());
  other.join();
  Counter listener, ignored;
  own.subscribe(0, listener, false);
  peer.subscribe(1, ignored, false);
  ASSERT_TRUE(own.start_thread().ok());
  peer.report({1, hepSuccess, -1, "rank 1: nothing"});
  for (int tries = 0; tries < 10000 && listener.lost == 0; ++tries) ::poll(nullptr, 0, 1);
  EXPECT_EQ(listener.lost, 1);
  EXPECT_EQ(listener.failed, 0);
  own.unsubscribe(0);
  peer.unsubscribe(1);
}

// Whose first call finds no memory.
struct Forgetful final : PeerListener {
  void peer_left(int) noexcept override { ++left; }
  void peer_lost(int) override {}
  void peer_failed(const PeerFailure& failure) override {
    if (++calls == 1) throw std::bad_alloc();
    sentence = failure.sentence;
  }
  bool poll_local_failure(PeerFailure*) override { return false; }
  int calls = 0, left = 0;
  std::string sentence;
};

TEST(PeerGroup, TellsAgainWhatAListenerHadNoMemoryFor) {
  PeerGroup group({7, 7, 7}, 0);
  Counter telling, after;
  Forgetful forgetful;
  group.subscribe(0, telling, false);
  group.subscribe(1, forgetful, false);
  group.subscribe(2, after, false);
  EXPECT_THROW(group.report({0, hepErrorTimeout, 2, "rank 0: timeout"}), std::bad_alloc);
  group.report({0, hepErrorTimeout, 2, "rank 0: timeout"});
  EXPECT_EQ(forgetful.sentence, "rank 0: timeout");
  EXPECT_EQ(after.failed, 1);
  for (int rank = 0; rank < 3; ++rank) group.unsubscribe(rank);
}

// Three ranks in two processes, as far as a test can have those.
class TwoProcesses : public testing::Test {
 protected:
  TwoProcesses() : groups_{{{1, 1, 2}, 0}, {{1, 1, 2}, 2}} {
    for (PeerGroup& group : groups_) EXPECT_TRUE(group.open().ok());
    const std::vector<LinkAddress> addresses{groups_[0].address(), {}, groups_[1].address()};
    std::thread other([&] { EXPECT_TRUE(groups_[1].connect(addresses, later()).ok()); });
    EXPECT_TRUE(groups_[0].connect(addresses, later()).ok());
    other.join();
    for (int rank = 0; rank < 3; ++rank) of(rank).subscribe(rank, listeners_[rank], false);
  }
  ~TwoProcesses() override {
    for (int rank = 0; rank < 3; ++rank) of(rank).unsubscribe(rank);
  }

  static Deadline later() { return Deadline::after_ms(20000); }
  PeerGroup& of(int rank) { return groups_[rank / 2]; }

  Status gather(int rank, int value, std::vector<int>* values, int* missing,
                Deadline deadline = later()) {
    values->assign(3, -1);
    return of(rank).all_gather(rank, &value, values->data(), sizeof value, deadline, missing);
  }

  // One round of all ranks.
  void expect_gathering() {
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < 3; ++rank)
      ranks.emplace_back([this, rank] {
        is_of_test = true;
        std::vector<int> values;
        int missing = 0;
        EXPECT_TRUE(gather(rank, 10 + rank, &values, &missing).ok());
        EXPECT_EQ(values, (std::vector<int>{10, 11, 12}));
      });
    for (std::thread& rank : ranks) rank.join();
  }

  PeerGroup groups_[2];
  Counter listeners_[3];
};

TEST_F(TwoProcesses, GatherWhatEachContributesInEveryRound) {
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 3; ++rank)
    ranks.emplace_back([&, rank] {
      for (int round = 0; round < 200; ++round) {
        std::vector<int> values;
        int missing = 0;
        ASSERT_TRUE(gather(rank, 10 * round + rank, &values, &missing).ok());
        EXPECT_EQ(values, (std::vector<int>{10 * round, 10 * round + 1, 10 * round + 2}));
        EXPECT_EQ(missing, -1);
      }
    });
  for (std::thread& rank : ranks) rank.join();
}

TEST_F(TwoProcesses, HearAFailureThatCameWhenNoMemoryWasLeft) {
  expect_gathering();
  const NoMemory no_memory;
  of(2).report({2, hepErrorTimeout, 1, "rank 2: waited too long for rank 1"});
  EXPECT_TRUE(comes_true([] { return times_refused > 0; }));
  no_memory.ends();
  EXPECT_TRUE(
      comes_true([this] { return listeners_[0].failed == 1 && listeners_[1].failed == 1; }));
}

TEST_F(TwoProcesses, GatherWithoutMemoryForThoseWhoListen) {
  const NoMemory no_memory;
  expect_gathering();
}

TEST_F(TwoProcesses, NameTheRankThatDoesNotContributeInTime) {
  std::vector<int> values;
  int missing = -1;
  const Status status = gather(0, 7, &values, &missing, Deadline::after_ms(20));
  EXPECT_EQ(status.result(), hepErrorTimeout);
  EXPECT_EQ(missing, 1);
}

TEST_F(TwoProcesses, StopGatheringWhenARankLeaves) {
  of(2).leave(2);
  std::vector<int> values, ignored;
  int missing = -1, also = -1;
  std::thread one([&] { EXPECT_FALSE(gather(1, 7, &ignored, &also).ok()); });
  const Status status = gather(0, 7, &values, &missing);
  one.join();
  EXPECT_EQ(status.result(), hepErrorPeerLost);
  EXPECT_EQ(missing, 2);
}

TEST_F(TwoProcesses, StopGatheringWhenARankLeavesAfterAContributionOfAnotherSize) {
  const char small = 7;
  char all[3];
  int ignored;
  EXPECT_FALSE(
      of(2).all_gather(2, &small, all, sizeof small, Deadline::after_ms(0), &ignored).ok());
  of(2).leave(2);
  std::vector<int> values, also;
  int missing = -1;
  std::thread one([&] { EXPECT_EQ(gather(1, 7, &also, &ignored).result(), hepErrorPeerLost); });
  EXPECT_EQ(gather(0, 7, &values, &missing).result(), hepErrorPeerLost);
  one.join();
  EXPECT_EQ(missing, 2);
}

TEST_F(TwoProcesses, StopGatheringWhenARankFails) {
  std::thread failing([&] {
    ::poll(nullptr, 0, 10);
    of(2).report({2, hepErrorAborted, 2, "rank 2: aborted"});
  });
  std::vector<int> values;
  int missing = -1;
  const Status status = gather(0, 7, &values, &missing);
  failing.join();
  EXPECT_EQ(status.result(), hepErrorAborted);
  EXPECT_EQ(status.message(), "rank 2: aborted");
}

}  // namespace
}  // namespace hep
