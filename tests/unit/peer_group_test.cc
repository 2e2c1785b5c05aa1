// SPDX-License-Identifier: Apache-2.0
// What the ranks of one process hear of each other.
#include "peers/peer_group.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <atomic>
#include <thread>
#include <vector>

namespace hep {
namespace {

struct Counter final : PeerListener {
  void peer_left(int) override { ++left; }
  void peer_lost(int) override { ++lost; }
  void peer_failed(const PeerFailure&) override { ++failed; }
  bool look_around(PeerFailure*) override {
    ++looks;
    return false;
  }
  std::atomic<int> left{0}, lost{0}, failed{0}, looks{0};
};

TEST(PeerGroup, TellsARankThatBeginsLaterWhatHasHappened) {
  PeerGroup group({7, 7, 7}, 0);
  Counter early, late;
  group.listen(0, &early, false);
  group.announce(PeerEvent::kFailed, {0, hepErrorTimeout, 2, "rank 0: timeout"});
  group.listen(1, &late, false);
  EXPECT_EQ(late.failed, 1);
  EXPECT_EQ(early.failed, 0) << "a rank is not told of itself";
  group.listen(0, nullptr, false);
  group.listen(1, nullptr, false);
}

TEST(PeerGroup, CallsNobodyAnyMoreOnceTheProcessExits) {
  PeerGroup group({7, 7, 8}, 0);
  ASSERT_TRUE(group.start_thread().ok());
  Counter own, other;
  group.listen(0, &own, true);
  group.listen(1, &other, true);
  const auto looked = [&] { return own.looks > 0 && other.looks > 0; };
  for (int tries = 0; tries < 10000 && !looked(); ++tries) ::poll(nullptr, 0, 1);
  EXPECT_TRUE(looked());
  group.leave_at_exit();
  const int looks = own.looks + other.looks;
  group.announce(PeerEvent::kFailed, {1, hepErrorTimeout, 0, "rank 1: timeout"});
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
  own.listen(0, &listener, false);
  peer.listen(1, &ignored, false);
  ASSERT_TRUE(own.start_thread().ok());
  peer.announce(PeerEvent::kFailed, {1, hepSuccess, -1, "rank 1: nothing"});
  for (int tries = 0; tries < 10000 && listener.lost == 0; ++tries) ::poll(nullptr, 0, 1);
  EXPECT_EQ(listener.lost, 1);
  EXPECT_EQ(listener.failed, 0);
  own.listen(0, nullptr, false);
  peer.listen(1, nullptr, false);
}

}  // namespace
}  // namespace hep
