// SPDX-License-Identifier: Apache-2.0
// What a rank tells of failures that come at the same time.
#include "comm/health.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "comm/parts.h"
#include "comm/registration.h"

namespace hep {
namespace {

// Keeps the first stop, as backends do, and lets a test come between.
class StoppedBackend final : public Backend {
 public:
  std::function<void()> before_stop, after_stop;

  void stop(hepResult_t result) noexcept override {
    if (before_stop) std::exchange(before_stop, nullptr)();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (result_ == hepSuccess) result_ = result;
    }
    if (after_stop) after_stop();
  }
  hepFailure_t failure() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    hepFailure_t failure = HEP_FAILURE_INITIALIZER;
    failure.result = result_;
    failure.missing_rank = -1;
    if (result_ == hepSuccess || awaited_ < 0) return failure;
    failure.operation = hepOperationRouting;
    failure.phase = hepPhaseRecords;
    failure.missing_rank = awaited_;
    return failure;
  }

  // From now on it looks as if a stop had ended a wait for this peer.
  void wait_for(int peer) { awaited_ = peer; }

  // From now on the device is dead.
  void lose_device(const std::string& reason) { device_ = Status(hepErrorCuda, reason); }
  Status check_device() const override { return device_; }

  Status create_routing(int, const RoutingRequest&, std::unique_ptr<BackendRouting>*) override {
    return Status();
  }
  Status set_registered(const std::vector<RegisteredAddress>&) override { return Status(); }
  void peer_left(int) noexcept override {}
  BadIndex bad_index() const override { return {}; }
  Overflow overflow() const override { return {}; }

 private:
  mutable std::mutex mutex_;
  hepResult_t result_ = hepSuccess;
  int awaited_ = -1;
  Status device_;
};

// Keeps what a peer is told.
struct Ear final : PeerListener {
  void peer_left(int rank) noexcept override { left.push_back(rank); }
  void peer_lost(int) override {}
  void peer_failed(const PeerFailure& failure) override { failures.push_back(failure); }
  bool poll_local_failure(PeerFailure*) override { return false; }
  std::vector<int> left;
  std::vector<PeerFailure> failures;
};

TEST(Health, GivesTheResultAndTheSentenceOfOneAndTheSameFailure) {
  StoppedBackend backend;
  std::unique_ptr<PeerMember> member;
  ASSERT_TRUE(PeerMember::open(1, {7, 7}, 0, &member).ok());
  Health health(0, {2, 2}, backend, *member, nullptr);
  std::thread loss;
  backend.before_stop = [&] {
    std::promise<void> lost;
    std::future<void> done = lost.get_future();
    loss = std::thread([&health, lost = std::move(lost)]() mutable {
      health.peer_lost(1);
      lost.set_value();
    });
    done.wait_for(std::chrono::milliseconds(200));  // or the loss waits for the abort
  };
  health.abort();
  loss.join();
  const Status status = health.check();
  const bool tells_of_abort = status.message().find("aborted") != std::string::npos;
  EXPECT_EQ(status.result(), tells_of_abort ? hepErrorAborted : hepErrorPeerLost)
      << status.message();
}

// Ranks 0 to 3 in one process. Rank 0 waits for rank 2, rank 1 listens.
class HealthOfWaitingRank : public testing::Test {
 protected:
  HealthOfWaitingRank() {
    for (int rank : {0, 1})
      EXPECT_TRUE(PeerMember::open(2, {7, 7, 7, 7}, rank, &members_[rank]).ok());
    EXPECT_TRUE(members_[1]->start(&peer_, false).ok());
    backend_.wait_for(2);
    health_ = std::make_unique<Health>(0, Topology{4, 4}, backend_, *members_[0], nullptr);
  }
  ~HealthOfWaitingRank() override { members_[1]->stop(); }

  // What was said before the start has not been told: so it is when the thread that ended the wait
  // has not come to tell yet, and the one that waited is faster.
  PeerFailure told_by_the_ended_wait() {
    EXPECT_TRUE(health_->start(false).ok());
    EXPECT_TRUE(peer_.failures.empty());
    EXPECT_FALSE(health_->check().ok());
    EXPECT_EQ(peer_.failures.size(), 1u);
    return peer_.failures.empty() ? PeerFailure{} : peer_.failures.front();
  }

  StoppedBackend backend_;
  Ear peer_;
  std::unique_ptr<PeerMember> members_[2];
  std::unique_ptr<Health> health_;
};

TEST_F(HealthOfWaitingRank, TellsOfItsAbortAlsoWhereTheEndedWaitTellsFirst) {
  health_->abort();
  const PeerFailure told = told_by_the_ended_wait();
  EXPECT_EQ(told.result, hepErrorAborted);
  EXPECT_EQ(told.missing_rank, 0);
  EXPECT_NE(told.sentence.find("rank 0 has aborted"), std::string::npos) << told.sentence;
}

TEST_F(HealthOfWaitingRank, TellsOfItsAbortAlsoWhereALookAroundTellsFirst) {
  health_->abort();
  PeerFailure told{};
  ASSERT_TRUE(health_->poll_local_failure(&told));
  EXPECT_EQ(told.result, hepErrorAborted);
  EXPECT_EQ(told.missing_rank, 0);
  EXPECT_NE(told.sentence.find("rank 0 has aborted"), std::string::npos) << told.sentence;
}

TEST_F(HealthOfWaitingRank, TellsWhatFailedBesideAnOperationAlsoWhereTheEndedWaitTellsFirst) {
  health_->fail(hepErrorPeerLost, 1, "hepCommRegister: rank 1 has left");
  const PeerFailure told = told_by_the_ended_wait();
  EXPECT_EQ(told.result, hepErrorPeerLost);
  EXPECT_EQ(told.missing_rank, 1);
  EXPECT_EQ(told.sentence, "rank 0: hepCommRegister: rank 1 has left");
}

TEST_F(HealthOfWaitingRank, TellsThePeersWhenItsDeviceHasDied) {
  backend_.wait_for(-1);
  backend_.lose_device("device 0 has died");
  PeerFailure told{};
  ASSERT_TRUE(health_->poll_local_failure(&told));
  EXPECT_EQ(told.rank, 0);
  EXPECT_EQ(told.result, hepErrorCuda);
  EXPECT_EQ(told.missing_rank, 0);
  EXPECT_EQ(told.sentence, "rank 0: device 0 has died");
}

TEST_F(HealthOfWaitingRank, FailsWhenItsDeviceHasDied) {
  EXPECT_TRUE(health_->start(false).ok());
  EXPECT_TRUE(health_->check().ok());
  backend_.lose_device("device 0 has died");
  const Status status = health_->check();
  EXPECT_EQ(status.result(), hepErrorCuda);
  EXPECT_NE(status.message().find("device 0 has died"), std::string::npos) << status.message();
  EXPECT_EQ(health_->failure().result, hepErrorCuda);
  EXPECT_EQ(health_->failure().missing_rank, 0);
  ASSERT_EQ(peer_.failures.size(), 1u);
  EXPECT_EQ(peer_.failures[0].result, hepErrorCuda);
}

TEST_F(HealthOfWaitingRank, KeepsItsFirstFailureWhenItsDeviceDiesLater) {
  backend_.wait_for(-1);
  health_->peer_failed({2, hepErrorAborted, 2, "rank 2 has aborted the communicator"});
  backend_.lose_device("device 0 has died");
  EXPECT_EQ(health_->check().result(), hepErrorAborted);
}

TEST_F(HealthOfWaitingRank, NamesThePeerWhoseDeviceHasDiedWhomeverItWaitedFor) {
  health_->peer_failed({3, hepErrorCuda, 3, "rank 3: device 5 has died"});
  EXPECT_EQ(health_->failure().missing_rank, 3);
  const Status status = health_->check();
  EXPECT_EQ(status.result(), hepErrorCuda);
  EXPECT_NE(status.message().find("rank 3: device 5 has died"), std::string::npos)
      << status.message();
}

// Rank 0 waits for rank 2 meanwhile.
TEST_F(HealthOfWaitingRank, NamesThePeerWhoseCallWasWrongWhomeverItWaitedFor) {
  health_->peer_failed({3, hepErrorInvalidUsage, 3, "rank 3: the call was wrong"});
  EXPECT_EQ(health_->failure().missing_rank, 3);
  EXPECT_EQ(health_->check().result(), hepErrorInvalidUsage);
}

TEST_F(HealthOfWaitingRank, NamesThePeerThatAnotherDiffersFromWhomeverItWaitedFor) {
  health_->peer_failed({1, hepErrorMismatch, 3, "rank 1: rank 3 called it with flat"});
  EXPECT_EQ(health_->failure().missing_rank, 3);
  EXPECT_EQ(health_->check().result(), hepErrorMismatch);
}

TEST_F(HealthOfWaitingRank, TellsOfALostPeerAlsoWhereItWaitedForNobody) {
  backend_.wait_for(-1);
  EXPECT_TRUE(health_->start(false).ok());
  health_->peer_lost(2);
  EXPECT_EQ(health_->check().result(), hepErrorPeerLost);
  ASSERT_EQ(peer_.failures.size(), 1u);
  EXPECT_EQ(peer_.failures[0].result, hepErrorPeerLost);
  EXPECT_EQ(peer_.failures[0].missing_rank, 2);
}

TEST_F(HealthOfWaitingRank, DoesNotRepeatWhatItWasToldWhereItWaitedForNobody) {
  backend_.wait_for(-1);
  EXPECT_TRUE(health_->start(false).ok());
  health_->peer_failed({2, hepErrorAborted, 2, "rank 2 has aborted the communicator"});
  EXPECT_EQ(health_->check().result(), hepErrorAborted);
  EXPECT_TRUE(peer_.failures.empty());
}

TEST_F(HealthOfWaitingRank, NamesTheLastOfThoseWhoWaitedForEachOtherAlsoWhereItWaitedForNobody) {
  backend_.wait_for(-1);
  health_->peer_failed({1, hepErrorTimeout, 2, "rank 1: waited for rank 2"});
  health_->peer_failed({2, hepErrorTimeout, 3, "rank 2: waited for rank 3"});
  EXPECT_EQ(health_->failure().missing_rank, 3);
  const std::string sentence = health_->check().message();
  EXPECT_NE(sentence.find("rank 2: waited for rank 3"), std::string::npos) << sentence;
}

TEST_F(HealthOfWaitingRank, AwaitsWhatTheAccusedRankHasToSayAlsoWhereItWaitedForNobody) {
  backend_.wait_for(-1);
  health_->peer_failed({1, hepErrorTimeout, 2, "rank 1: waited for rank 2"});
  std::promise<void> begun;
  std::thread accused([&] {
    begun.set_value();
    ::poll(nullptr, 0, 20);
    health_->peer_failed({2, hepErrorTimeout, 3, "rank 2: waited for rank 3"});
  });
  begun.get_future().wait();
  const std::string sentence = health_->check().message();
  accused.join();
  EXPECT_NE(sentence.find("rank 2: waited for rank 3"), std::string::npos) << sentence;
}

// Ranks of one process, each of which waits for one other rank, or for nobody. What one tells, all
// others have heard when it returns.
class Waits {
 public:
  explicit Waits(const std::vector<int>& awaited) : awaited_(awaited), backends_(awaited.size()) {
    const int num_ranks = static_cast<int>(awaited.size());
    const std::vector<uint64_t> processes(num_ranks, 7);
    for (int rank = 0; rank < num_ranks; ++rank) {
      members_.emplace_back();
      EXPECT_TRUE(PeerMember::open(4, processes, rank, &members_.back()).ok());
      backends_[rank].wait_for(awaited[rank]);
      healths_.push_back(std::make_unique<Health>(rank, Topology{num_ranks, num_ranks},
                                                  backends_[rank], *members_.back(), nullptr));
      EXPECT_TRUE(healths_.back()->start(false).ok());
    }
  }

  // The wait of one rank expires. Then the ranks tell what they know, in this order, if they wait.
  void expire(int first, const std::vector<int>& order) {
    backends_[first].stop(hepErrorTimeout);
    tell(first);
    for (const int rank : order)
      if (rank != first && awaited_[rank] >= 0) tell(rank);
  }

  int named_by(int rank) const { return healths_[rank]->failure().missing_rank; }

  bool is_explained(int rank) const { return awaited_[rank] >= 0; }

  // Returns whether the waits lead from this rank to one that waits for nobody.
  bool end(int rank) const {
    for (size_t step = 0; step <= awaited_.size(); ++step) {
      if (awaited_[rank] < 0) return true;
      rank = awaited_[rank];
    }
    return false;
  }

 private:
  void tell(int rank) {
    PeerFailure own{};
    EXPECT_TRUE(healths_[rank]->poll_local_failure(&own));
    members_[rank]->report(own);
  }

  const std::vector<int> awaited_;
  std::vector<StoppedBackend> backends_;
  std::vector<std::unique_ptr<PeerMember>> members_;
  std::vector<std::unique_ptr<Health>> healths_;
};

TEST(HealthOfManyRanks, NamesTheEndOfAChainWhoeverGivesUpFirst) {
  Waits waits({2, 0, 3, -1});
  waits.expire(1, {0, 2});
  for (const int rank : {0, 1, 2}) EXPECT_EQ(waits.named_by(rank), 3) << "by rank " << rank;
}

TEST(HealthOfManyRanks, NamesARankWhoseOwnWaitDoesNotExplainItInRandomGraphs) {
  std::mt19937 random(1);
  for (int graph = 0; graph < 2000; ++graph) {
    const int num_ranks = 2 + static_cast<int>(random() % 7);
    std::vector<int> awaited, order;
    for (int rank = 0; rank < num_ranks; ++rank) {
      const int other = (rank + 1 + static_cast<int>(random() % (num_ranks - 1))) % num_ranks;
      awaited.push_back(random() % 4 == 0 ? -1 : other);
      order.push_back(rank);
    }
    std::shuffle(order.begin(), order.end(), random);
    const auto waiting =
        std::find_if(order.begin(), order.end(), [&](int rank) { return awaited[rank] >= 0; });
    if (waiting == order.end()) continue;
    const int first = *waiting;
    std::shuffle(order.begin(), order.end(), random);
    Waits waits(awaited);
    waits.expire(first, order);
    for (int rank = 0; rank < num_ranks; ++rank) {
      const bool leads_out = waits.is_explained(rank) && waits.end(rank);
      if (!waits.end(first) && !leads_out) continue;  // all that it knows is a circle
      const int named = waits.named_by(rank);
      ASSERT_GE(named, 0);
      ASSERT_FALSE(waits.is_explained(named))
          << "rank " << rank << " names " << named << ": " << testing::PrintToString(awaited)
          << ", first " << first << ", then " << testing::PrintToString(order);
    }
  }
}

TEST_F(HealthOfWaitingRank, TellsWhomItWaitedForItself) {
  EXPECT_TRUE(health_->start(false).ok());
  health_->peer_failed({3, hepErrorTimeout, 0, "rank 3: waited for rank 0"});
  const std::string sentence = health_->check().message();
  ASSERT_EQ(peer_.failures.size(), 1u);
  EXPECT_EQ(peer_.failures[0].missing_rank, 2);
  EXPECT_NE(peer_.failures[0].sentence.find("waited for rank 2"), std::string::npos)
      << peer_.failures[0].sentence;
  EXPECT_NE(sentence.find("rank 2 is missing"), std::string::npos) << sentence;
}

TEST(Comm, ThatIsDestroyedAmidAnOperationLeavesAndHasNotFailed) {
  Ear peer;
  std::unique_ptr<PeerMember> other;
  ASSERT_TRUE(PeerMember::open(3, {7, 7}, 1, &other).ok());
  ASSERT_TRUE(other->start(&peer, false).ok());
  auto parts = std::make_unique<CommParts>();
  ASSERT_TRUE(PeerMember::open(3, {7, 7}, 0, &parts->member).ok());
  auto backend = std::make_unique<StoppedBackend>();
  backend->wait_for(1);
  backend->after_stop = [] { ::poll(nullptr, 0, 200); };  // several looks around
  parts->backend = std::move(backend);
  parts->health =
      std::make_unique<Health>(0, Topology{2, 2}, *parts->backend, *parts->member, nullptr);
  ASSERT_TRUE(parts->health->start(true).ok());
  parts.reset();
  other->stop();
  EXPECT_EQ(peer.left, std::vector<int>{0});
  EXPECT_TRUE(peer.failures.empty()) << peer.failures.front().sentence;
}

}  // namespace
}  // namespace hep
