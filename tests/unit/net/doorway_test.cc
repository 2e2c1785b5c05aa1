// SPDX-License-Identifier: Apache-2.0
// The way in at a listening socket: who is heard, who stays, and who goes.
#include "net/doorway.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "net/listener.h"
#include "net/socket.h"

namespace hep {
namespace {

constexpr size_t kMaxStrangers = 3;

// Lets in who says "!" and shuts out who says something else.
struct Keeper final : Doorway::Keeper {
  bool greet(Doorway::Stranger&) override { return welcomes; }
  bool hear(Doorway::Stranger& stranger) override {
    char word = 0;
    if (::recv(stranger.socket.get(), &word, 1, MSG_DONTWAIT) < 0) return false;
    if (word == '!') admitted.push_back(std::move(stranger.socket));
    return true;
  }
  void dismiss(Doorway::Stranger& stranger) override {
    dismissed.push_back(stranger.address.text());
  }

  bool welcomes = true;
  std::vector<Descriptor> admitted;
  std::vector<std::string> dismissed;  // by address
};

class DoorwayTest : public testing::Test {
 protected:
  DoorwayTest() { EXPECT_TRUE(listen_at_loopback(&listener_).ok()); }

  Descriptor connect() {
    const SocketAddress address = socket_address(listener_.addresses[0], listener_.port);
    Descriptor socket;
    EXPECT_TRUE(connect_to(address, Deadline::after_ms(10000), &socket).ok());
    return socket;
  }

  static std::string name_of(const Descriptor& socket) {
    SocketAddress address;
    ::getsockname(socket.get(), address.get(), &address.length);
    return address.text();
  }

  static void say(const Descriptor& socket, char word) {
    EXPECT_EQ(::send(socket.get(), &word, 1, MSG_NOSIGNAL), 1);
  }

  static bool is_shut_out(const Descriptor& socket) {
    char byte;
    return ::recv(socket.get(), &byte, 1, MSG_DONTWAIT) == 0;
  }

  // One turn. All that was done on loopback before it has arrived.
  Status serve() {
    std::vector<pollfd> entries;
    doorway_.watch(&entries);
    ::poll(entries.data(), entries.size(), 0);
    return doorway_.serve(entries.data());
  }

  Listener listener_;
  Keeper keeper_;
  Doorway doorway_{listener_.socket, keeper_, kMaxStrangers};
};

TEST_F(DoorwayTest, LetsInWhoProvesItself) {
  const Descriptor silent = connect(), good = connect(), bad = connect();
  ASSERT_TRUE(serve().ok());
  say(good, '!');
  say(bad, '?');
  ASSERT_TRUE(serve().ok());
  EXPECT_EQ(keeper_.admitted.size(), 1u);
  EXPECT_TRUE(is_shut_out(bad));
  EXPECT_FALSE(is_shut_out(good));
  EXPECT_FALSE(is_shut_out(silent));
}

TEST_F(DoorwayTest, ShutsOutWhoLeavesAndWhoIsNotGreeted) {
  Descriptor leaves = connect();
  ASSERT_TRUE(serve().ok());
  leaves.reset();
  ASSERT_TRUE(serve().ok());
  EXPECT_EQ(doorway_.remaining_ms(), INT32_MAX) << "nobody is waited for any more";
  keeper_.welcomes = false;
  const Descriptor unwelcome = connect();
  ASSERT_TRUE(serve().ok());
  EXPECT_TRUE(is_shut_out(unwelcome));
  EXPECT_TRUE(keeper_.dismissed.empty());
}

TEST_F(DoorwayTest, MakesRoomForTheNewestByTheOldest) {
  std::vector<Descriptor> strangers;
  for (size_t i = 0; i < kMaxStrangers + 2; ++i) strangers.push_back(connect());
  ASSERT_TRUE(serve().ok());
  EXPECT_EQ(keeper_.dismissed,
            (std::vector<std::string>{name_of(strangers[0]), name_of(strangers[1])}));
  for (size_t i = 0; i < strangers.size(); ++i) EXPECT_EQ(is_shut_out(strangers[i]), i < 2) << i;
}

TEST_F(DoorwayTest, MakesRoomByTheOldestWhereNoDescriptorIsFree) {
  const Descriptor oldest = connect(), second = connect(), third = connect();
  const int free = ::dup(listener_.socket.get());  // the number that the first of them gets
  ::close(free);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit two{static_cast<rlim_t>(free) + 2, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &two), 0);
  const Status first_turn = serve(), second_turn = serve();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_TRUE(first_turn.ok()) << first_turn.message();
  EXPECT_TRUE(second_turn.ok()) << second_turn.message();
  EXPECT_EQ(keeper_.dismissed, (std::vector<std::string>{name_of(oldest)}));
  EXPECT_TRUE(is_shut_out(oldest));
  say(third, '!');
  ASSERT_TRUE(serve().ok());
  EXPECT_EQ(keeper_.admitted.size(), 1u);
}

TEST_F(DoorwayTest, TellsThatNobodyCanComeInWhereNoDescriptorIsFree) {
  const Descriptor stranger = connect();
  const int free = ::dup(listener_.socket.get());
  ::close(free);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none{static_cast<rlim_t>(free), before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const Status refused = serve();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(refused.result(), hepErrorSystem);
  EXPECT_LE(doorway_.remaining_ms(), 1000) << "it tries again soon";
}

TEST_F(DoorwayTest, GivesEachStrangerADeadline) {
  const Descriptor stranger = connect();
  ASSERT_TRUE(serve().ok());
  EXPECT_GT(doorway_.remaining_ms(), 0);
  EXPECT_LE(doorway_.remaining_ms(), kProofMs);
}

TEST_F(DoorwayTest, ShutsAllOut) {
  const Descriptor stranger = connect();
  ASSERT_TRUE(serve().ok());
  doorway_.clear();
  EXPECT_TRUE(is_shut_out(stranger));
}

}  // namespace
}  // namespace hep
