// SPDX-License-Identifier: Apache-2.0
// How the two ends of a new connection show each other that they know a secret, without showing it.
// The end that listens sends a challenge, the end that connects answers it with a proof and gets a
// proof in return.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "deadline.h"
#include "net/frames.h"
#include "net/siphash.h"
#include "status.h"

namespace hep {

// How long either end gives the other to prove itself.
constexpr int kProofMs = 5000;

// The end that connects. Tells the other which rank it is, and that it wants to have joined within
// `remaining_ms`.
Status prove(int socket, const SipKey& secret, int rank, int num_ranks, uint32_t remaining_ms,
             Deadline deadline);

// The end that listens, for one connection. Never waits.
class Verifier {
 public:
  enum class Verdict { kPending, kProved, kRefused };

  // Sets the options of the connection and sends the challenge. False if it is gone already.
  bool challenge(int socket);

  // Reads what has come of the answer, and no byte behind it. Refuses an answer as soon as it cannot
  // become a proof.
  Verdict read(int socket, const SipKey& secret);

  // What was proved. The numbers in it may still be out of range.
  const wire::Join& join() const { return join_; }

  // Sends the proof in return. False if the connection is gone already.
  bool welcome(int socket, const SipKey& secret) const;

 private:
  wire::Nonce nonce_{};
  std::array<char, sizeof(wire::FrameHeader) + sizeof(wire::Join)> answer_;
  size_t received_ = 0;  // bytes of the answer
  wire::Join join_{};
};

}  // namespace hep
