// SPDX-License-Identifier: Apache-2.0
// The passing of descriptors among processes that have no right to take part.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "memory_fixture.h"

// While it is set, a look at a queue that is empty takes until the other end has closed. The
// kernel, which looks at both without a lock over them, then answers that there is an end and
// nothing before it.
static std::atomic<bool> looks_take_long{false}, looked{false};

extern "C" ssize_t recvmsg(int socket, msghdr* message, int flags) {
  static const auto real =
      reinterpret_cast<ssize_t (*)(int, msghdr*, int)>(::dlsym(RTLD_NEXT, "recvmsg"));
  const ssize_t length = real(socket, message, flags);
  if (length >= 0 || errno != EAGAIN || !looks_take_long.exchange(false)) return length;
  looked = true;
  pollfd entry{socket, POLLRDHUP, 0};
  return ::poll(&entry, 1, hep::kPatienceMs) == 1 ? 0 : length;
}

namespace hep {
namespace {

sockaddr_un socket_name(const std::string& text, socklen_t* length) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  text.copy(name.sun_path + 1, sizeof name.sun_path - 1);
  *length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + text.size());
  return name;
}

Descriptor connect_to(const DescriptorAddress& address) {
  Descriptor socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  socklen_t length;
  const sockaddr_un name = socket_name(address.socket_name, &length);
  EXPECT_EQ(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&name), length), 0);
  return socket;
}

Descriptor listen_as(const DescriptorAddress& address) {
  Descriptor listener(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  socklen_t length;
  const sockaddr_un name = socket_name(address.socket_name, &length);
  EXPECT_EQ(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&name), length), 0);
  EXPECT_EQ(::listen(listener.get(), 8), 0);
  return listener;
}

bool try_to_send_packet(const Descriptor& socket, std::string packet, int descriptor) {
  iovec part{packet.data(), packet.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (descriptor >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    *header = {};
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
  }
  return ::sendmsg(socket.get(), &message, MSG_NOSIGNAL) == static_cast<ssize_t>(packet.size());
}

void send_packet(const Descriptor& socket, const std::string& packet, int descriptor) {
  EXPECT_TRUE(try_to_send_packet(socket, packet, descriptor));
}

// What rank 1 says to rank 0, caught by a socket that poses as rank 0's.
std::string catch_greeting(DescriptorChannel& rank1, DescriptorAddress rank0,
                           Deadline deadline = Deadline::after_ms(50)) {
  std::strcpy(rank0.socket_name, ("eavesdropper-" + std::to_string(::getpid())).c_str());
  const Descriptor listener = listen_as(rank0);
  const Status status = rank1.exchange(
      1, {0}, {rank0, rank1.address()}, [](int, int) {}, deadline);
  EXPECT_EQ(status.result(), hepErrorTimeout);
  const Descriptor connection(::accept(listener.get(), nullptr, nullptr));
  char packet[256];
  const ssize_t received = ::recv(connection.get(), packet, sizeof packet, 0);
  EXPECT_GT(received, 0);
  return std::string(packet, std::max<ssize_t>(received, 0));
}

TEST(DescriptorChannel, IgnoresStrangers) {
  const Descriptor offered[3] = {Descriptor(::memfd_create("a", MFD_CLOEXEC)),
                                 Descriptor(::memfd_create("b", MFD_CLOEXEC)),
                                 Descriptor(::memfd_create("stranger", MFD_CLOEXEC))};
  std::unique_ptr<DescriptorChannel> channels[2];
  for (int r = 0; r < 2; ++r)
    ASSERT_TRUE(DescriptorChannel::open(offered[r].get(), &channels[r]).ok());
  const std::vector<DescriptorAddress> addresses{channels[0]->address(), channels[1]->address()};
  const std::string greeting = catch_greeting(*channels[1], addresses[0]);
  const std::string token(reinterpret_cast<const char*>(&addresses[0].token), sizeof(uint64_t));
  const size_t token_at = greeting.find(token);
  ASSERT_NE(token_at, std::string::npos) << "a greeting carries the receiver's token";
  std::string forged = greeting;
  forged[token_at] ^= 1;
  const long files = open_files();

  std::vector<Descriptor> strangers;
  const auto stranger = [&](const std::string& packet, int descriptor) {
    strangers.push_back(connect_to(addresses[0]));
    if (!packet.empty()) send_packet(strangers.back(), packet, descriptor);
  };
  stranger(forged, offered[2].get());
  stranger("GET / HTTP/1.1\r\n\r\n", -1);
  stranger(std::string(4096, '\xff'), offered[2].get());
  stranger(greeting.substr(0, greeting.size() - 1), offered[2].get());
  stranger(greeting + "x", offered[2].get());
  for (int i = 0; i < 50; ++i) stranger("", -1);  // silent
  connect_to(addresses[0]);                       // gone at once

  run_threads(0, 2, [&](int rank) {
    int calls = 0;
    const auto receive = [&](int peer, int descriptor) {
      ++calls;
      EXPECT_EQ(peer, 1 - rank);
      struct stat got, expected;
      ASSERT_EQ(::fstat(descriptor, &got), 0);
      ASSERT_EQ(::fstat(offered[peer].get(), &expected), 0);
      EXPECT_EQ(got.st_ino, expected.st_ino);
    };
    const Status status = channels[rank]->exchange(rank, {1 - rank}, addresses, receive,
                                                   Deadline::after_ms(kPatienceMs));
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(calls, 1);
  });
  strangers.clear();
  EXPECT_EQ(open_files(), files);
}

// Two ranks of this process that have exchanged their addresses, and a file that neither offers.
class TwoChannels : public testing::Test {
 protected:
  void SetUp() override {
    for (int r = 0; r < 2; ++r) {
      files_[r] = Descriptor(::memfd_create("offered", MFD_CLOEXEC));
      ASSERT_TRUE(DescriptorChannel::open(files_[r].get(), &channels_[r]).ok());
      addresses_.push_back(channels_[r]->address());
    }
    other_file_ = Descriptor(::memfd_create("other", MFD_CLOEXEC));
  }

  // Each rank receives what the other one offers, and nothing else.
  void expect_exchange() {
    run_threads(0, 2, [&](int rank) {
      int calls = 0;
      const auto receive = [&](int peer, int descriptor) {
        ++calls;
        EXPECT_EQ(peer, 1 - rank);
        EXPECT_TRUE(is_same_file(descriptor, files_[peer].get()));
      };
      const Status status = channels_[rank]->exchange(rank, {1 - rank}, addresses_, receive,
                                                      Deadline::after_ms(kPatienceMs));
      EXPECT_TRUE(status.ok()) << status.message();
      EXPECT_EQ(calls, 1);
    });
  }

  static bool is_same_file(int a, int b) {
    struct stat one, other;
    return ::fstat(a, &one) == 0 && ::fstat(b, &other) == 0 && one.st_dev == other.st_dev &&
           one.st_ino == other.st_ino;
  }

  Descriptor files_[2], other_file_;
  std::unique_ptr<DescriptorChannel> channels_[2];
  std::vector<DescriptorAddress> addresses_;
};

TEST_F(TwoChannels, IgnoreAnotherProcessOfTheUserThatKnowsTheToken) {
  const std::string greeting = catch_greeting(*channels_[1], addresses_[0]);
  Descriptor connection;
  const pid_t child = fork_child([&] {
    connection = connect_to(addresses_[0]);
    send_packet(connection, greeting, other_file_.get());
    connection.reset();
  });
  ASSERT_EQ(exit_code(child), 0);
  expect_exchange();
}

TEST_F(TwoChannels, IgnoreAFileThatWasNotAnnounced) {
  const std::string greeting = catch_greeting(*channels_[1], addresses_[0]);
  const Descriptor connection = connect_to(addresses_[0]);
  send_packet(connection, greeting, other_file_.get());
  expect_exchange();
}

TEST_F(TwoChannels, GiveNothingToAnotherProcessThatListensInTheirPlace) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const Descriptor read_end(ends[0]), write_end(ends[1]);
  std::strcpy(addresses_[0].socket_name, ("impostor-" + std::to_string(::getpid())).c_str());
  const pid_t child = fork_child([&] {
    const Descriptor listener = listen_as(addresses_[0]);
    ASSERT_EQ(::write(write_end.get(), "!", 1), 1);
    const Descriptor connection(::accept(listener.get(), nullptr, nullptr));
    char packet[256];
    EXPECT_EQ(::recv(connection.get(), packet, sizeof packet, 0), 0);
  });
  char ready;
  ASSERT_EQ(::read(read_end.get(), &ready, 1), 1);
  // Whether the other way to pass descriptors works here does not matter.
  const Status status = channels_[1]->exchange(
      1, {0}, addresses_, [](int, int) {}, Deadline::after_ms(100));
  EXPECT_TRUE(status.ok() || status.result() == hepErrorSystem) << status.message();
  EXPECT_EQ(exit_code(child), 0);
}

TEST_F(TwoChannels, AreNotHeldUpByAFloodOfConnections) {
  const pid_t child = fork_child([&] {
    std::deque<Descriptor> connections;
    for (;;) {
      connections.push_back(connect_to(addresses_[0]));
      if (connections.size() > 100) connections.pop_front();
    }
  });
  ::poll(nullptr, 0, 50);
  expect_exchange();
  ::kill(child, SIGKILL);
  exit_code(child);
}

TEST_F(TwoChannels, EndAtTheirDeadlineInAFloodOfConnections) {
  const pid_t child = fork_child([&] {
    for (;;) connect_to(addresses_[0]);
  });
  const Status status = channels_[0]->exchange(
      0, {1}, addresses_, [](int, int) {}, Deadline::after_ms(200));
  expect_error(status, hepErrorTimeout, "rank 1");
  ::kill(child, SIGKILL);
  exit_code(child);
}

// A peer may be slow to speak, and be taken for a stranger meanwhile. Then it must learn of that,
// or be heard, for it does not send again what the kernel has taken.
TEST(DescriptorChannels, HearWhatASlowPeerSentBeforeItHadToMakeRoom) {
  const Descriptor file(::memfd_create("offered", MFD_CLOEXEC));
  for (int round = 0; round < 200; ++round) {
    std::unique_ptr<DescriptorChannel> channels[2];
    for (auto& channel : channels) ASSERT_TRUE(DescriptorChannel::open(file.get(), &channel).ok());
    const std::vector<DescriptorAddress> addresses{channels[0]->address(), channels[1]->address()};
    const std::string greeting = catch_greeting(*channels[1], addresses[0], Deadline::after_ms(0));
    std::atomic<bool> heard{false};
    std::thread receiver([&] {
      const Status status = channels[0]->exchange(
          0, {1}, addresses, [](int, int) {}, Deadline::after_ms(kPatienceMs));
      EXPECT_TRUE(status.ok()) << status.message();
      heard = true;
    });
    const auto speak = [&](int pauses) {
      const Descriptor slow = connect_to(addresses[0]);
      std::atomic<bool> over{false};
      std::thread crowd([&] {
        std::vector<Descriptor> silent;
        for (int i = 0; i < 34; ++i)  // more than are listened to
          silent.push_back(connect_to(addresses[0]));
        while (!over) std::this_thread::yield();
      });
      for (volatile int i = 0; i < pauses; i = i + 1) continue;
      const bool sent = try_to_send_packet(slow, greeting, file.get());
      for (int i = 0; sent && !heard && i < 20000; ++i) ::poll(nullptr, 0, 1);
      over = true;
      crowd.join();
      EXPECT_TRUE(!sent || heard) << "round " << round;
    };
    speak(round * 500);
    if (!heard) {
      const Descriptor quick = connect_to(addresses[0]);
      send_packet(quick, greeting, file.get());
    }
    receiver.join();
    if (HasFailure()) return;
  }
}

TEST_F(TwoChannels, HearWhatAPeerSaysBetweenALookAtItsWordsAndALookWhetherItHasGone) {
  const std::string greeting = catch_greeting(*channels_[1], addresses_[0]);
  Descriptor connection = connect_to(addresses_[0]);
  looks_take_long = true;
  std::thread receiver([&] {
    const Status status = channels_[0]->exchange(
        0, {1}, addresses_, [](int, int) {}, Deadline::after_ms(2000));
    EXPECT_TRUE(status.ok()) << status.message();
  });
  for (int i = 0; i < kPatienceMs && !looked; ++i) ::poll(nullptr, 0, 1);
  EXPECT_TRUE(looked);
  send_packet(connection, greeting, files_[1].get());
  connection.reset();
  receiver.join();
}

TEST(DescriptorChannels, LeaveNoNameBehindWhenTheirProcessIsKilled) {
  const auto exists = [](const DescriptorAddress& address) {
    const Descriptor socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    socklen_t length;
    const sockaddr_un name = socket_name(address.socket_name, &length);
    return ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&name), length) == 0;
  };
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const Descriptor read_end(ends[0]), write_end(ends[1]);
  const pid_t child = fork_child([&] {
    const Descriptor file(::memfd_create("offered", MFD_CLOEXEC));
    std::unique_ptr<DescriptorChannel> channel;
    ASSERT_TRUE(DescriptorChannel::open(file.get(), &channel).ok());
    const DescriptorAddress address = channel->address();
    ASSERT_EQ(::write(write_end.get(), &address, sizeof address),
              static_cast<ssize_t>(sizeof address));
    ::pause();
  });
  DescriptorAddress address;
  ASSERT_EQ(::read(read_end.get(), &address, sizeof address), static_cast<ssize_t>(sizeof address));
  EXPECT_TRUE(exists(address));
  ::kill(child, SIGKILL);
  exit_code(child);
  EXPECT_FALSE(exists(address));
}

}  // namespace
}  // namespace hep
