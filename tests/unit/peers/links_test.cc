// SPDX-License-Identifier: Apache-2.0
// The connections between the processes of a communicator, amid strangers and late comers.
#include "peers/links.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/log.h"
#include "unit/bootstrap/bootstrap_fixture.h"

namespace hep {
namespace {

// Processes, as far as links know, each a thread here.
class LinksTest : public testing::Test {
 protected:
  void open(int count) {
    links_ = vector<Links>(count);
    for (Links& links : links_) {
      ASSERT_TRUE(links.open().ok());
      addresses_.push_back(links.address());
      names_.push_back("rank " + std::to_string(names_.size()));
    }
  }

  Status connect(int process, Deadline deadline) {
    return links_[process].connect(addresses_, process, names_, deadline);
  }

  // All connect, and each pair can talk.
  void expect_connected() {
    const int count = static_cast<int>(links_.size());
    on_threads(count, [&](int process) {
      const Status status = connect(process, later());
      EXPECT_TRUE(status.ok()) << status.message();
    });
    for (int from = 0; from < count; ++from)
      for (int to = 0; to < count; ++to)
        if (from != to) expect_talk(from, to);
  }

  // Process 1 comes when the strangers have had their turn.
  void expect_connected_after(const std::function<void()>& strangers) {
    on_threads(2, [&](int process) {
      if (process == 1) strangers();
      const Status status = connect(process, later());
      EXPECT_TRUE(status.ok()) << status.message();
    });
    expect_talk(0, 1);
    expect_talk(1, 0);
  }

  void expect_talk(int from, int to) {
    const char sent = static_cast<char>(10 * from + to);
    char received = 0;
    const int sender = links_[from].sockets()[to].get();
    const int receiver = links_[to].sockets()[from].get();
    EXPECT_EQ(::send(sender, &sent, 1, MSG_NOSIGNAL), 1);
    pollfd entry{receiver, POLLIN, 0};
    EXPECT_EQ(::poll(&entry, 1, kLongMs), 1);
    EXPECT_EQ(::recv(receiver, &received, 1, MSG_DONTWAIT), 1);
    EXPECT_EQ(received, sent);
  }

  // Where process 0 listens, as a stranger finds it.
  Rendezvous door() const {
    return {{addresses_[0].addresses[0]}, addresses_[0].port, 0, addresses_[0].secret};
  }

  vector<Links> links_;
  vector<LinkAddress> addresses_;
  vector<string> names_;
};

TEST_F(LinksTest, ConnectEachProcessToEveryOther) {
  open(4);
  expect_connected();
}

void collect(hepLogLevel_t, const char* message, void* context) {
  static_cast<vector<string>*>(context)->push_back(message);
}

TEST_F(LinksTest, SayThatTheAddressThatIsSetIsNotOfThisMachine) {
  vector<string> messages;
  LogCallback log;
  log.set(collect, &messages);
  ::setenv("HEP_RENDEZVOUS_ADDRESS", "192.0.2.7", 1);  // of documentation
  open(1);
  ::setenv("HEP_RENDEZVOUS_ADDRESS", "127.0.0.1", 1);
  open(1);
  ::unsetenv("HEP_RENDEZVOUS_ADDRESS");
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_NE(messages[0].find("192.0.2.7 is not an address of this machine"), string::npos)
      << messages[0];
}

TEST_F(LinksTest, DoNotTakeAConnectionThatWasGivenUp) {
  open(2);
  // Process 0 is late, so that the first attempt of process 1 stays in its queue.
  EXPECT_EQ(connect(1, Deadline::after_ms(50)).result(), hepErrorTimeout);
  expect_connected();
}

TEST_F(LinksTest, ShutOutStrangersThatDoNotKnowTheSecret) {
  open(2);
  expect_connected_after([&] {
    Stranger garbage(door()), silent(door()), guessing(door());
    const string request = "GET / HTTP/1.1\r\nHost: rank\r\nAccept: text/html, text/plain\r\n\r\n";
    garbage.challenge();
    garbage.send(request.data(), request.size());
    EXPECT_TRUE(garbage.is_refused());
    SipKey secret = door().secret;
    secret[15] ^= 1;
    const wire::Join join = make_join(secret, guessing.challenge(), 1, 2);
    guessing.send_frame(kJoinHeader, &join, sizeof join);
    EXPECT_TRUE(guessing.is_refused());
  });
}

TEST_F(LinksTest, MakeRoomWhereStrangersTakeTheLastDescriptor) {
  open(2);
  std::deque<Stranger> strangers;
  for (int i = 0; i < 100; ++i) strangers.emplace_back(door());
  const pid_t process = ::fork();
  if (process == 0) {
    strangers.clear();
    const rlimit limit{64, 64};
    ::setrlimit(RLIMIT_NOFILE, &limit);
    ::_exit(connect(0, later()).ok() ? 0 : 1);
  }
  const Status status = connect(1, later());
  EXPECT_TRUE(status.ok()) << status.message();
  int code = -1;
  EXPECT_EQ(::waitpid(process, &code, 0), process);
  EXPECT_TRUE(WIFEXITED(code) && WEXITSTATUS(code) == 0);
}

TEST_F(LinksTest, ShutOutAReplayedProof) {
  open(2);
  expect_connected_after([&] {
    Stranger overheard(door()), replayed(door());
    const wire::Join join = make_join(door().secret, overheard.challenge(), 1, 2);
    replayed.challenge();
    replayed.send_frame(kJoinHeader, &join, sizeof join);
    EXPECT_TRUE(replayed.is_refused());
  });
}

TEST_F(LinksTest, ShowTheirSecretToNobodyWhoListensInTheirPlace) {
  open(2);
  Descriptor listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof name;
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&name), length), 0);
  ASSERT_EQ(::listen(listener.get(), 16), 0);
  ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&name), &length), 0);
  addresses_[0].num_addresses = 1;
  addresses_[0].addresses[0] = v4_mapped(name.sin_addr);
  addresses_[0].port = ntohs(name.sin_port);

  string heard;
  std::thread impostor([&] {
    const Descriptor victim(::accept(listener.get(), nullptr, nullptr));
    const wire::Challenge challenge{};
    const auto header = wire::make_header(wire::FrameType::kChallenge, sizeof challenge);
    ::send(victim.get(), &header, sizeof header, MSG_NOSIGNAL);
    ::send(victim.get(), &challenge, sizeof challenge, MSG_NOSIGNAL);
    char buffer[256];
    for (ssize_t got; (got = ::recv(victim.get(), buffer, sizeof buffer, 0)) > 0;)
      heard.append(buffer, got);
  });
  EXPECT_EQ(connect(1, Deadline::after_ms(kShortMs)).result(), hepErrorTimeout);
  impostor.join();
  EXPECT_FALSE(heard.empty());
  const auto* secret = reinterpret_cast<const char*>(&addresses_[0].secret);
  EXPECT_EQ(heard.find(string(secret, sizeof(SipKey) / 2)), string::npos);
}

}  // namespace
}  // namespace hep
