// SPDX-License-Identifier: Apache-2.0
// The rendezvous among strangers that attack it, and ranks among hubs that are none.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bootstrap_fixture.h"

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
  expect_error(hep::join(id, 1, 2, soon()), hepErrorPeerLost, {"rank 1: ", "'join'", "rank 0"});
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

TEST_F(BootstrapTest, AHubThatDoesNotKnowTheSecretIsNotTrusted) {
  // An impostor on the port of a rendezvous: it sends what it likes for proof.
  Descriptor listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof name;
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&name), length), 0);
  ASSERT_EQ(::listen(listener.get(), 16), 0);
  ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&name), &length), 0);
  std::thread impostor([&] {
    for (;;) {
      const Descriptor rank(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!rank.valid()) return;
      const auto send = [&](wire::FrameType type, const void* payload, size_t size) {
        const wire::FrameHeader header = wire::make_header(type, size);
        ::send(rank.get(), &header, sizeof header, MSG_NOSIGNAL);
        ::send(rank.get(), payload, size, MSG_NOSIGNAL);
      };
      const wire::Challenge challenge{};
      const wire::Welcome welcome{42};
      send(wire::FrameType::kChallenge, &challenge, sizeof challenge);
      send(wire::FrameType::kWelcome, &welcome, sizeof welcome);
      char byte;
      while (::recv(rank.get(), &byte, 1, 0) > 0) continue;
    }
  });
  Rendezvous rendezvous{{v4_mapped(name.sin_addr)}, ntohs(name.sin_port), 0, {7, 7, 7}};
  rendezvous.host = host_fingerprint(rendezvous.secret);
  expect_error(join(write_unique_id(rendezvous), 0, 1, soon()), hepErrorTimeout,
               {"rank 0", "does not know the secret"});
  ::shutdown(listener.get(), SHUT_RDWR);
  impostor.join();
}

TEST_F(BootstrapTest, LoopbackOfAnotherMachineIsNotTried) {
  const Rendezvous elsewhere{{v4_mapped({htonl(INADDR_LOOPBACK)})}, 9, 0x1234, {7, 7, 7}};
  expect_error(join(write_unique_id(elsewhere), 2, 3, later()), hepErrorSystem,
               {"rank 2", "another machine", "loopback"});
}

}  // namespace
}  // namespace hep
