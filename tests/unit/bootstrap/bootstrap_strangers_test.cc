// SPDX-License-Identifier: Apache-2.0
// The rendezvous among strangers that attack it, and ranks among hubs that are none.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bootstrap_fixture.h"
#include "net/handshake.h"
#include "net/socket.h"
#include "protocol/shape.h"

namespace hep {
namespace {

using Attack = std::function<void(Stranger&, const Rendezvous&)>;

// The stranger is shut out, and the job goes on.
void expect_refused(const Attack& attack) {
  const hepUniqueId_t id = new_id();
  const Rendezvous rendezvous = contents_of(id);
  Stranger stranger(rendezvous);
  ASSERT_TRUE(stranger.connected());
  attack(stranger, rendezvous);
  EXPECT_TRUE(stranger.is_refused());
  run_job(id, 2);
}

TEST_F(BootstrapTest, GarbageIsRefused) {
  expect_refused([](Stranger& stranger, const Rendezvous&) {
    stranger.challenge();
    const string request = "GET / HTTP/1.1\r\nHost: rendezvous\r\n\r\n";
    stranger.send(request.data(), request.size());
  });
}

TEST_F(BootstrapTest, AWrongSecretIsRefused) {
  expect_refused([](Stranger& stranger, const Rendezvous& rendezvous) {
    SipKey secret = rendezvous.secret;
    secret[15] ^= 1;
    const wire::Join join = make_join(secret, stranger.challenge(), 0, 2);
    stranger.send_frame(kJoinHeader, &join, sizeof join);
  });
}

TEST_F(BootstrapTest, AProofForAnotherRankIsRefused) {
  expect_refused([](Stranger& stranger, const Rendezvous& rendezvous) {
    wire::Join join = make_join(rendezvous.secret, stranger.challenge(), 0, 2);
    join.rank = 1;
    stranger.send_frame(kJoinHeader, &join, sizeof join);
  });
}

TEST_F(BootstrapTest, AnImpossibleRankIsRefused) {
  expect_refused([](Stranger& stranger, const Rendezvous& rendezvous) {
    const wire::Join join = make_join(rendezvous.secret, stranger.challenge(), 5, 2);
    stranger.send_frame(kJoinHeader, &join, sizeof join);
  });
}

TEST_F(BootstrapTest, AnotherVersionIsRefused) {
  expect_refused([](Stranger& stranger, const Rendezvous& rendezvous) {
    const wire::Join join = make_join(rendezvous.secret, stranger.challenge(), 0, 2);
    wire::FrameHeader header = kJoinHeader;
    header.version += 1;
    stranger.send_frame(header, &join, sizeof join);
  });
}

TEST_F(BootstrapTest, AnOversizedFrameIsRefusedBeforeItIsThere) {
  expect_refused([](Stranger& stranger, const Rendezvous&) {
    stranger.challenge();
    wire::FrameHeader header = kJoinHeader;
    header.length = 0xffffffff;
    stranger.send(&header, sizeof header);
  });
}

TEST_F(BootstrapTest, AFrameOutOfTurnIsRefused) {
  expect_refused([](Stranger& stranger, const Rendezvous&) {
    stranger.challenge();
    const wire::Gather gather{0, kLongMs, "join"};
    stranger.send_frame(wire::make_header(wire::FrameType::kGather, sizeof gather), &gather,
                        sizeof gather);
  });
}

TEST_F(BootstrapTest, AReplayedHandshakeIsRefused) {
  const hepUniqueId_t id = new_id();
  const Rendezvous rendezvous = contents_of(id);
  Stranger overheard(rendezvous), replayed(rendezvous);
  const wire::Join join = make_join(rendezvous.secret, overheard.challenge(), 0, 2);
  overheard.send_frame(kJoinHeader, &join, sizeof join);
  EXPECT_EQ(overheard.next_type(), wire::FrameType::kWelcome);
  replayed.challenge();
  replayed.send_frame(kJoinHeader, &join, sizeof join);
  EXPECT_TRUE(replayed.is_refused());
  // The seat of rank 0 was taken by the first and by it alone, so that rank 1 completes the job.
  const wire::Gather gather{0, kLongMs, "join"};
  overheard.send_frame(wire::make_header(wire::FrameType::kGather, sizeof gather), &gather,
                       sizeof gather);
  EXPECT_TRUE(joined(id, 1, 2));
  EXPECT_EQ(overheard.next_type(), wire::FrameType::kResult);
}

TEST_F(BootstrapTest, AnOversizedFrameOfARankEndsThatRank) {
  const hepUniqueId_t id = new_id();
  const Rendezvous rendezvous = contents_of(id);
  Stranger rogue(rendezvous);
  const wire::Join join = make_join(rendezvous.secret, rogue.challenge(), 0, 2);
  rogue.send_frame(kJoinHeader, &join, sizeof join);
  EXPECT_EQ(rogue.next_type(), wire::FrameType::kWelcome);
  const wire::FrameHeader header =
      wire::make_header(wire::FrameType::kGather, sizeof(wire::Gather) + Bootstrap::kMaxBytes + 1);
  rogue.send(&header, sizeof header);
  EXPECT_TRUE(rogue.is_refused());
  expect_error(hep::join(id, 1, 2, later()), hepErrorPeerLost, {"rank 1: ", "'join'", "rank 0"});
}

TEST_F(BootstrapTest, SilentStrangersHoldUpNobodyAndAreShutOutInTheEnd) {
  const hepUniqueId_t id = new_id();
  const Rendezvous rendezvous = contents_of(id);
  vector<std::unique_ptr<Stranger>> strangers;
  for (int i = 0; i < 200; ++i) strangers.push_back(std::make_unique<Stranger>(rendezvous));
  strangers[199]->challenge();
  strangers[199]->send(&kJoinHeader, 5);  // and not a byte more
  run_job(id, 8);
  for (const auto& stranger : strangers) {
    while (!stranger->is_refused()) continue;  // passes over the challenge
  }
}

TEST_F(BootstrapTest, AHalfClosedConnectionIsRefused) {
  const hepUniqueId_t id = new_id();
  Stranger stranger(contents_of(id));
  stranger.challenge();
  stranger.end_output();
  EXPECT_TRUE(stranger.is_refused());
  run_job(id, 2);
}

TEST_F(BootstrapTest, AStrangerThatDripsBytesIsShutOutAtItsDeadline) {
  const hepUniqueId_t id = new_id();
  Stranger stranger(contents_of(id));
  stranger.challenge();
  const auto* bytes = reinterpret_cast<const char*>(&kJoinHeader);
  // A header byte a second never becomes a frame in the time that there is for the proof.
  for (int i = 0; i < 4; ++i) {
    stranger.send(bytes + i, 1);
    ::poll(nullptr, 0, 1000);
  }
  EXPECT_TRUE(stranger.is_refused());
  run_job(id, 2);
}

TEST_F(BootstrapTest, StrangersDoNotKeepARendezvousOpen) {
  ::setenv("HEP_RENDEZVOUS_TIMEOUT_MS", "300", 1);
  const Rendezvous rendezvous = contents_of(new_id());
  vector<std::unique_ptr<Stranger>> strangers;
  EXPECT_TRUE(comes_true([&] {
    strangers.push_back(std::make_unique<Stranger>(rendezvous));
    return !strangers.back()->connected();
  }));
}

TEST_F(BootstrapTest, ARankThatHangsDoesNotKeepThePortOpen) {
  const Rendezvous rendezvous = contents_of(new_id());
  Stranger hanging(rendezvous);
  const wire::Join join = make_join(rendezvous.secret, hanging.challenge(), 0, 2, kShortMs);
  hanging.send_frame(kJoinHeader, &join, sizeof join);
  EXPECT_EQ(hanging.next_type(), wire::FrameType::kWelcome);
  EXPECT_TRUE(comes_true([&] { return !Stranger(rendezvous).connected(); }));
}

// Connects to a rendezvous as fast as it can from a process of its own, until it is killed.
class Flood {
 public:
  explicit Flood(const Rendezvous& rendezvous) : process_(::fork()) {
    if (process_ != 0) return;
    std::deque<Stranger> strangers;
    for (;;) {
      strangers.emplace_back(rendezvous);
      if (strangers.size() > 300) strangers.pop_front();
    }
  }
  ~Flood() {
    ::kill(process_, SIGKILL);
    ::waitpid(process_, nullptr, 0);
  }

 private:
  const pid_t process_;
};

TEST_F(BootstrapTest, AFloodOfStrangersNeitherKeepsRanksOutNorTakesTheDescriptors) {
  const hepUniqueId_t id = new_id();
  const int before = open_descriptors();
  const Flood flood(contents_of(id));
  for (int i = 0; i < 50; ++i) {
    ::poll(nullptr, 0, 10);
    EXPECT_LT(open_descriptors(), before + 3 * kMaxRanks);
  }
  run_job(id, 4);
}

TEST_F(BootstrapTest, StrangersThatTakeTheLastDescriptorMakeRoomForRanks) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const Descriptor read_end(ends[0]), write_end(ends[1]);
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit limit{64, 64};
    ::setrlimit(RLIMIT_NOFILE, &limit);
    const hepUniqueId_t id = new_id();
    if (::write(ends[1], &id, sizeof id) == sizeof id) ::pause();
    ::_exit(1);
  }
  hepUniqueId_t id;
  ASSERT_EQ(::read(read_end.get(), &id, sizeof id), static_cast<ssize_t>(sizeof id));
  const Rendezvous rendezvous = contents_of(id);
  vector<std::unique_ptr<Stranger>> strangers;
  for (int i = 0; i < 100; ++i) strangers.push_back(std::make_unique<Stranger>(rendezvous));
  run_job(id, 4);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

// ------------------------------------------------------------------------ hubs that are none

// Listens where a rank expects a hub, and does to each connection what it is told to.
class Impostor {
 public:
  using Act = std::function<void(int socket)>;

  explicit Impostor(Act act) : listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof name;
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&name), length), 0);
    EXPECT_EQ(::listen(listener_.get(), 16), 0);
    EXPECT_EQ(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&name), &length), 0);
    rendezvous_ = {{v4_mapped(name.sin_addr)}, ntohs(name.sin_port), 0, kSecret};
    rendezvous_.host = host_fingerprint(rendezvous_.secret);
    thread_ = std::thread([this, act = std::move(act)] {
      for (;;) {
        const Descriptor rank(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (!rank.valid()) return;
        act(rank.get());
        char byte;
        while (::recv(rank.get(), &byte, 1, 0) > 0) continue;
      }
    });
  }

  ~Impostor() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
  }

  hepUniqueId_t id() const { return write_unique_id(rendezvous_); }

  // How the first attempt of a rank ends, without a deadline that a busy machine may miss.
  Status attempt() const {
    Descriptor socket;
    HEP_TRY(
        connect_to(socket_address(rendezvous_.addresses[0], rendezvous_.port), later(), &socket));
    return prove(socket.get(), rendezvous_.secret, {0, 1, kLongMs, 0}, later(), later());
  }

  static void send_frame(int socket, wire::FrameHeader header, const void* payload) {
    ::send(socket, &header, sizeof header, MSG_NOSIGNAL);
    ::send(socket, payload, header.length, MSG_NOSIGNAL);
  }

  static constexpr SipKey kSecret{0xde, 0xad, 0xbe, 0xef, 0xfa, 0xce, 0xb0, 0x0c};

 private:
  Descriptor listener_;
  Rendezvous rendezvous_;
  std::thread thread_;
};

const wire::FrameHeader kChallengeHeader =
    wire::make_header(wire::FrameType::kChallenge, sizeof(wire::Challenge));

void send_false_proof(int socket) {
  const wire::Challenge challenge{};
  const wire::Welcome welcome{42};
  Impostor::send_frame(socket, kChallengeHeader, &challenge);
  Impostor::send_frame(socket, wire::make_header(wire::FrameType::kWelcome, sizeof welcome),
                       &welcome);
}

TEST_F(BootstrapTest, AHubThatDoesNotKnowTheSecretIsNotTrusted) {
  const Impostor impostor(send_false_proof);
  expect_error(impostor.attempt(), hepErrorSystem, {"does not know the secret"});
  // Perhaps the right one answers before the deadline.
  expect_error(join(impostor.id(), 0, 1, soon()), hepErrorTimeout, {"rank 0", "127.0.0.1"});
}

TEST_F(BootstrapTest, AnotherServiceIsNotTakenForAHub) {
  const Impostor impostor([](int socket) {
    const string greeting = "220 mail.example.org ESMTP ready\r\n";
    ::send(socket, greeting.data(), greeting.size(), MSG_NOSIGNAL);
  });
  expect_error(impostor.attempt(), hepErrorSystem, {"another service"});
}

TEST_F(BootstrapTest, AHubThatAnnouncesTooMuchIsNotListenedTo) {
  const Impostor impostor([](int socket) {
    wire::FrameHeader header = kChallengeHeader;
    header.length = 0xffffffff;
    ::send(socket, &header, sizeof header, MSG_NOSIGNAL);
  });
  expect_error(impostor.attempt(), hepErrorSystem, {"another service"});
}

TEST_F(BootstrapTest, AHubOfAnotherVersionIsNamedWithIt) {
  const Impostor impostor([](int socket) {
    const wire::Challenge challenge{};
    wire::FrameHeader header = kChallengeHeader;
    header.version = 77;
    Impostor::send_frame(socket, header, &challenge);
  });
  expect_error(impostor.attempt(), hepErrorSystem, {"version 77"});
}

TEST_F(BootstrapTest, AHubThatSaysNothingIsLeftAtTheDeadline) {
  const Impostor impostor([](int) {});
  expect_error(join(impostor.id(), 0, 1, soon()), hepErrorTimeout, {"rank 0", "no answer"});
}

// The secret, in the ways in which bytes get into a text.
void expect_no_secret(const string& text) {
  for (const char* part :
       {"deadbeef", "DEADBEEF", "de:ad", "\xde\xad", "222, 173", "222 173", "efbeadde"})
    EXPECT_EQ(text.find(part), string::npos) << text;
}

TEST_F(BootstrapTest, ErrorsDoNotTellTheSecret) {
  const Impostor impostor(send_false_proof);
  hepUniqueId_t id = impostor.id();
  expect_no_secret(join(id, 0, 1, soon()).message());
  expect_no_secret(join(id, 2, 1, soon()).message());
  id.bytes[sizeof id.bytes - 1] ^= 1;
  expect_no_secret(join(id, 0, 1, soon()).message());
  expect_no_secret(join(write_unique_id({{}, 1, 2, Impostor::kSecret}), 0, 1, soon()).message());
}

TEST_F(BootstrapTest, LoopbackOfAnotherMachineIsNotTried) {
  const Rendezvous elsewhere{{v4_mapped({htonl(INADDR_LOOPBACK)})}, 9, 0x1234, {7, 7, 7}};
  expect_error(join(write_unique_id(elsewhere), 2, 3, later()), hepErrorSystem,
               {"rank 2", "another machine", "loopback"});
}

}  // namespace
}  // namespace hep
