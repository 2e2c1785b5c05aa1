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

// The end that listens gives the other this long to prove itself. The end that connects waits this
// long for the challenge, which shows that the service there may be the right one.
constexpr int kProofMs = 5000;

// Says who connects.
struct Visitor {
  int rank;
  int num_ranks;
  uint32_t remaining_ms;  // within which it wants to have joined
  uint32_t visit;         // wire::Join::visit
};

// The end that connects calls this. It waits until `challenge_by` for the challenge and until
// `welcome_by` for the proof of the other end. That end may have been stopped meanwhile, and a rank
// that gives up its proof would have to come a second time.
Status prove(int socket, const SipKey& secret, const Visitor& visitor, Deadline challenge_by,
             Deadline welcome_by);

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
