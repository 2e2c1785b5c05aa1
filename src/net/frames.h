// SPDX-License-Identifier: Apache-2.0
// The frames of a connection. A frame is a header and its payload. Integers are little-endian,
// which is the byte order of all machines that are served.
//
// Every connection begins with a handshake between the end that listens and the end that connects:
//   listens  -> connects  challenge
//   connects -> listens   join            proves the secret
//   listens  -> connects  welcome         proves it back
//
// Between a rank and the hub of the bootstrap follow:
//   rank     -> hub       gather, data    one rank's part in an all-gather
//   rank     -> hub       failure, text   between two all-gathers
//   hub      -> rank      result          the data of all ranks, rank by rank
//   hub      -> rank      failure, text   once, at any time after welcome; no result follows it
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "net/siphash.h"

namespace hep::wire {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);

constexpr uint32_t kMagic = 0x48455042;
constexpr uint16_t kVersion = 1;
constexpr size_t kMaxTextBytes = 1000;

// A rank waits this long after its deadline for the hub to tell which ranks are missing.
constexpr int kExplanationMs = 1000;

using Nonce = std::array<uint8_t, 16>;

enum class FrameType : uint16_t { kChallenge = 1, kJoin, kWelcome, kGather, kResult, kFailure };

struct FrameHeader {
  uint32_t magic;
  uint16_t version;
  FrameType type;
  uint32_t length;  // of what follows
};
static_assert(sizeof(FrameHeader) == 12);

inline FrameHeader make_header(FrameType type, size_t length) {
  return {kMagic, kVersion, type, static_cast<uint32_t>(length)};
}

struct Challenge {
  Nonce nonce;
};

struct Join {
  Nonce nonce;
  int32_t rank;
  int32_t num_ranks;
  uint32_t remaining_ms;  // until this rank's deadline
  uint32_t visit;         // a random number, the same in all attempts of one rank to join
  uint64_t proof;         // over all that stands before it
};
static_assert(sizeof(Join) == 40);

struct Welcome {
  uint64_t proof;
};

struct Gather {
  uint32_t sequence;      // which all-gather, from 0
  uint32_t remaining_ms;  // until this rank's deadline
  char phase[32];
};
static_assert(sizeof(Gather) == 40);

struct Failure {
  uint32_t result;  // hepResult_t
};

// Says which end proves that it knows the secret. The proofs of the two ends differ, so that
// neither end's proof can be sent back to it.
enum class Side : uint32_t { kConnecting = 1, kListening = 2 };

// The proof covers the challenge and the nonce of the other end, so that it is worth nothing on
// another connection.
inline uint64_t make_proof(const SipKey& secret, Side side, const Nonce& challenge,
                           const Join& join) {
  struct {
    Side side;
    uint32_t version;
    Nonce challenge;
    Join join;
  } message{side, kVersion, challenge, join};
  message.join.proof = 0;
  static_assert(sizeof message == 64);
  return siphash(secret, &message, sizeof message);
}

// The time that it takes tells nothing of where two proofs differ.
inline bool equal_proofs(uint64_t a, uint64_t b) {
  volatile uint64_t difference = a ^ b;
  return difference == 0;
}

}  // namespace hep::wire
