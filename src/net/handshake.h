// SPDX-License-Identifier: Apache-2.0
// The two ends of a new connection prove to each other that they know a secret, and do not show it.
// The end that listens sends a challenge. The end that connects answers with a proof and gets one
// in return.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/deadline.h"
#include "base/status.h"
#include "net/frames.h"
#include "net/siphash.h"

namespace hep {

// Either end gives the other this long to prove itself.
constexpr int kProofMs = 5000;

// The end that connects calls this. It tells the other end which rank it is, and that it wants to
// have joined within `remaining_ms`.
Status prove(int socket, const SipKey& secret, int rank, int num_ranks, uint32_t remaining_ms,
             Deadline deadline);

// The end that listens has one of these for each new connection. It never waits.
class Verifier {
 public:
  enum class Verdict { kPending, kProved, kRefused };

  // Sets the options of the connection and sends the challenge. Returns false if it is gone
  // already.
  bool challenge(int socket);

  // Reads what has come of the answer, and no byte behind it. Refuses an answer as soon as it
  // cannot become a proof.
  Verdict read(int socket, const SipKey& secret);

  // Returns what was proved. The numbers in it may still be out of range.
  const wire::Join& join() const { return join_; }

  // Sends the proof in return. Returns false if the connection is gone already.
  bool welcome(int socket, const SipKey& secret) const;

 private:
  wire::Nonce nonce_{};
  std::array<char, sizeof(wire::FrameHeader) + sizeof(wire::Join)> answer_;
  size_t received_ = 0;  // bytes of the answer
  wire::Join join_{};
};

}  // namespace hep
