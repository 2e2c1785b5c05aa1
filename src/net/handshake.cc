// SPDX-License-Identifier: Apache-2.0
#include "net/handshake.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "base/identity.h"
#include "net/socket.h"

namespace hep {
namespace {

using wire::FrameHeader;
using wire::FrameType;

// Has the bytes of a frame as they travel.
template <typename Payload>
struct Framed {
  FrameHeader header;
  Payload payload;
} __attribute__((packed));

template <typename Payload>
Framed<Payload> make_framed(FrameType type, const Payload& payload) {
  return {wire::make_header(type, sizeof payload), payload};
}

// A connection that is new has room for a small frame, so one that takes less is of no use.
template <typename Payload>
bool send_at_once(int socket, FrameType type, const Payload& payload) {
  const auto frame = make_framed(type, payload);
  return ::send(socket, &frame, sizeof frame, MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof frame;
}

// Receives a frame of one type and size from an end that is not trusted yet.
template <typename Payload>
Status receive_frame(int socket, FrameType type, Payload* payload, Deadline deadline) {
  FrameHeader header;
  Io io = receive_all(socket, &header, sizeof header, deadline);
  if (io != Io::kDone) return error(hepErrorSystem, "%s", io_text(io));
  if (header.magic != wire::kMagic || header.type != type || header.length != sizeof *payload)
    return error(hepErrorSystem, "another service answers there");
  if (header.version != wire::kVersion)
    return error(hepErrorSystem, "it speaks version %d of the protocol, not %d", header.version,
                 wire::kVersion);
  io = receive_all(socket, payload, sizeof *payload, deadline);
  if (io != Io::kDone) return error(hepErrorSystem, "%s", io_text(io));
  return Status();
}

bool is_header_of_join(const FrameHeader& header) {
  return header.magic == wire::kMagic && header.version == wire::kVersion &&
         header.type == FrameType::kJoin && header.length == sizeof(wire::Join);
}

}  // namespace

Status prove(int socket, const SipKey& secret, const Visitor& visitor, Deadline challenge_by,
             Deadline welcome_by) {
  wire::Challenge challenge;
  HEP_TRY(receive_frame(socket, FrameType::kChallenge, &challenge, challenge_by));

  wire::Join join{{}, visitor.rank, visitor.num_ranks, visitor.remaining_ms, visitor.visit, 0};
  HEP_TRY(random_bytes(join.nonce.data(), join.nonce.size()));
  join.proof = wire::make_proof(secret, wire::Side::kConnecting, challenge.nonce, join);
  const auto frame = make_framed(FrameType::kJoin, join);
  const Io io = send_all(socket, &frame, sizeof frame, welcome_by);
  if (io != Io::kDone) return error(hepErrorSystem, "%s", io_text(io));

  wire::Welcome welcome;
  HEP_TRY(receive_frame(socket, FrameType::kWelcome, &welcome, welcome_by));
  const uint64_t expected = wire::make_proof(secret, wire::Side::kListening, challenge.nonce, join);
  if (!wire::equal_proofs(welcome.proof, expected))
    return error(hepErrorSystem, "it does not know the secret of this id");
  return Status();
}

bool Verifier::challenge(int socket) {
  set_connection_options(socket);
  return random_bytes(nonce_.data(), nonce_.size()).ok() &&
         send_at_once(socket, FrameType::kChallenge, wire::Challenge{nonce_});
}

Verifier::Verdict Verifier::read(int socket, const SipKey& secret) {
  const ssize_t length =
      ::recv(socket, answer_.data() + received_, answer_.size() - received_, MSG_DONTWAIT);
  if (length < 0 && (errno == EAGAIN || errno == EINTR)) return Verdict::kPending;
  if (length <= 0) return Verdict::kRefused;
  received_ += length;
  FrameHeader header;
  if (received_ < sizeof header) return Verdict::kPending;
  std::memcpy(&header, answer_.data(), sizeof header);
  if (!is_header_of_join(header)) return Verdict::kRefused;
  if (received_ < answer_.size()) return Verdict::kPending;
  std::memcpy(&join_, answer_.data() + sizeof header, sizeof join_);
  const uint64_t expected = wire::make_proof(secret, wire::Side::kConnecting, nonce_, join_);
  return wire::equal_proofs(join_.proof, expected) ? Verdict::kProved : Verdict::kRefused;
}

bool Verifier::welcome(int socket, const SipKey& secret) const {
  const uint64_t proof = wire::make_proof(secret, wire::Side::kListening, nonce_, join_);
  return send_at_once(socket, FrameType::kWelcome, wire::Welcome{proof});
}

}  // namespace hep
