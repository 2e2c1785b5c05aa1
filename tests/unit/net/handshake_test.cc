// SPDX-License-Identifier: Apache-2.0
// The two ends of a new connection prove themselves to each other.
#include "net/handshake.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <future>

#include "base/descriptor.h"

namespace hep {
namespace {

constexpr SipKey kSecret{1, 2, 3};

class HandshakeTest : public testing::Test {
 protected:
  HandshakeTest() {
    int ends[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
    connects_ = Descriptor(ends[0]);
    listens_ = Descriptor(ends[1]);
  }

  std::future<Status> begin_to_prove(Deadline challenge_by, Deadline welcome_by) {
    return std::async(std::launch::async, [=] {
      return prove(connects_.get(), kSecret, {0, 1, 0, 0}, challenge_by, welcome_by);
    });
  }

  Descriptor connects_, listens_;
  Verifier verifier_;
};

TEST_F(HandshakeTest, ARankKeepsItsProofUpWhileTheOtherEndIsStopped) {
  ASSERT_TRUE(verifier_.challenge(listens_.get()));
  const Deadline challenge_by = Deadline::after_ms(30);
  std::future<Status> proof = begin_to_prove(challenge_by, Deadline::after_ms(30000));
  while (!challenge_by.expired()) ::poll(nullptr, 0, challenge_by.remaining_ms());
  ::poll(nullptr, 0, 30);
  while (verifier_.read(listens_.get(), kSecret) == Verifier::Verdict::kPending)
    ::poll(nullptr, 0, 1);
  EXPECT_TRUE(verifier_.welcome(listens_.get(), kSecret));
  const Status proved = proof.get();
  EXPECT_TRUE(proved.ok()) << proved.message();
}

TEST_F(HandshakeTest, AServiceThatDoesNotChallengeIsLeftEarly) {
  EXPECT_FALSE(begin_to_prove(Deadline::after_ms(30), Deadline::after_ms(30000)).get().ok());
}

}  // namespace
}  // namespace hep
