// SPDX-License-Identifier: Apache-2.0
// What travels between a rank and the hub: frames, each a header and its payload, integers in the
// byte order of the machine, which is little-endian on all that are served.
//
//   hub   -> rank  challenge        as soon as the connection stands
//   rank  -> hub   join             proves the secret
//   hub   -> rank  welcome          proves it back
//   rank  -> hub   gather, data     one all-gather's contribution
//   hub   -> rank  result           data of all ranks, rank by rank
//   hub   -> rank  failure, text    at any time after welcome, once; no result follows it
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

// What both sides allow a connection to prove itself.
constexpr int kProofMs = 5000;

// How long a rank waits, after its deadline, for the hub to tell which ranks are missing.
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
  uint32_t reserved;
  uint64_t proof;  // over all that stands before it
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

// Who proves that it has the secret. Distinct, so that neither side's proof can be sent back to it.
enum class Side : uint32_t { kRank = 1, kHub = 2 };

// Sets what both sides want of a connection: small messages at once, and dead machines noticed.
void set_socket_options(int socket);

// The proof covers both sides' nonces, so that it is worth nothing on another connection.
inline uint64_t make_proof(const SipKey& secret, Side side, const Nonce& hub_nonce,
                           const Join& join) {
  struct {
    Side side;
    uint32_t version;
    Nonce hub_nonce;
    Join join;
  } message{side, kVersion, hub_nonce, join};
  message.join.proof = 0;
  static_assert(sizeof message == 64);
  return siphash(secret, &message, sizeof message);
}

// The time it takes tells nothing of where two proofs differ.
inline bool equal_proofs(uint64_t a, uint64_t b) {
  volatile uint64_t difference = a ^ b;
  return difference == 0;
}

}  // namespace hep::wire
