// SPDX-License-Identifier: Apache-2.0
#include "net/handshake.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>

#include "identity.h"
#include "net/frames.h"

namespace hep {
namespace {

// Moves `size` bytes with send or recv, whichever `transfer` is.
template <typename Byte, typename Transfer>
Io transfer_all(int socket, short events, Byte* data, size_t size, Deadline deadline,
                Transfer transfer) {
  while (size > 0) {
    const ssize_t moved = transfer(data, size);
    if (moved > 0) {
      data += moved;
      size -= moved;
    } else if (moved == 0 || (errno != EAGAIN && errno != EINTR)) {
      return Io::kClosed;
    } else if (errno == EAGAIN && !wait_for_event(socket, events, deadline)) {
      return Io::kExpired;
    }
  }
  return Io::kDone;
}

// Receives a frame of one type and size, from a side that is not trusted yet.
Status receive_frame(int socket, wire::FrameType type, void* payload, size_t size,
                     Deadline deadline) {
  wire::FrameHeader header;
  Io io = receive_all(socket, &header, sizeof header, deadline);
  if (io != Io::kDone) return error(hepErrorSystem, "%s", io_text(io));
  if (header.magic != wire::kMagic || header.type != type || header.length != size)
    return error(hepErrorSystem, "another service answers there");
  if (header.version != wire::kVersion)
    return error(hepErrorSystem, "it speaks version %d of the protocol, not %d", header.version,
                 wire::kVersion);
  io = receive_all(socket, payload, size, deadline);
  if (io != Io::kDone) return error(hepErrorSystem, "%s", io_text(io));
  return Status();
}

}  // namespace

const char* io_text(Io io) { return io == Io::kClosed ? "connection closed" : "no answer"; }

bool wait_for_event(int socket, short events, Deadline deadline) {
  pollfd entry{socket, events, 0};
  for (;;) {
    const int ready = ::poll(&entry, 1, deadline.remaining_ms());
    if (ready > 0) return true;
    if (deadline.expired() || (ready < 0 && errno != EINTR)) return false;
  }
}

Io send_all(int socket, const void* data, size_t size, Deadline deadline) {
  return transfer_all(socket, POLLOUT, static_cast<const char*>(data), size, deadline,
                      [socket](const char* from, size_t bytes) {
                        return ::send(socket, from, bytes, MSG_NOSIGNAL);
                      });
}

Io receive_all(int socket, void* data, size_t size, Deadline deadline) {
  return transfer_all(socket, POLLIN, static_cast<char*>(data), size, deadline,
                      [socket](char* to, size_t bytes) { return ::recv(socket, to, bytes, 0); });
}

Status prove(int socket, const SipKey& secret, int rank, int num_ranks, uint32_t remaining_ms,
             Deadline deadline) {
  using wire::FrameType;
  wire::Challenge challenge;
  HEP_TRY(receive_frame(socket, FrameType::kChallenge, &challenge, sizeof challenge, deadline));

  struct {
    wire::FrameHeader header;
    wire::Join join;
  } __attribute__((packed)) frame;
  wire::Join join{{}, rank, num_ranks, remaining_ms, 0, 0};
  HEP_TRY(random_bytes(join.nonce.data(), join.nonce.size()));
  join.proof = wire::make_proof(secret, wire::Side::kRank, challenge.nonce, join);
  frame.header = wire::make_header(FrameType::kJoin, sizeof join);
  frame.join = join;
  const Io io = send_all(socket, &frame, sizeof frame, deadline);
  if (io != Io::kDone) return error(hepErrorSystem, "%s", io_text(io));

  wire::Welcome welcome;
  HEP_TRY(receive_frame(socket, FrameType::kWelcome, &welcome, sizeof welcome, deadline));
  const uint64_t expected = wire::make_proof(secret, wire::Side::kHub, challenge.nonce, join);
  if (!wire::equal_proofs(welcome.proof, expected))
    return error(hepErrorSystem, "it does not know the secret of this id");
  return Status();
}

}  // namespace hep
