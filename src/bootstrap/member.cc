// SPDX-License-Identifier: Apache-2.0
// Class Bootstrap, the rank's end of the connection to the hub.
#include <sys/socket.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "base/identity.h"
#include "base/result.h"
#include "bootstrap/bootstrap.h"
#include "bootstrap/connection.h"
#include "bootstrap/unique_id.h"
#include "config/ranks.h"
#include "net/address.h"
#include "net/frames.h"
#include "net/reach.h"
#include "net/socket.h"

namespace hep {
namespace {

// A rank looks for the hub at most this long in order to decline.
constexpr int kDeclineMs = 5000;

// Ranks that come this much later are still told that this one has declined.
constexpr int kDeclinedMs = 1000;

Status reach_hub(const Rendezvous& rendezvous, int rank, int num_ranks, Deadline deadline,
                 Descriptor* out, int join_ms = INT32_MAX) {
  // A rank that cannot tell tries all addresses, because it has to tell the others of its error.
  const bool same_host =
      !read_host_identity().ok() || rendezvous.host == host_fingerprint(rendezvous.secret);
  const Destination hub{reachable(rendezvous.addresses, same_host), rendezvous.port,
                        rendezvous.secret};
  if (hub.addresses.empty())
    return error(hepErrorSystem,
                 "rank %d: the unique id was made on another machine and offers only loopback "
                 "addresses; HEP_RENDEZVOUS_ADDRESS there can name another",
                 rank);
  const Status reached = reach(hub, rank, num_ranks, deadline, out, join_ms);
  if (reached.ok()) return Status();
  return error(reached.result(), "rank %d: the rendezvous was not reached%s (%s)", rank,
               reached.result() == hepErrorTimeout ? " in time" : "", reached.message().c_str());
}

Status lost(int rank, const char* phase) {
  return error(hepErrorPeerLost,
               "rank %d: phase '%s': the connection to the process that opened the rendezvous is "
               "gone",
               rank, phase);
}

Status no_answer(int rank, const char* phase) {
  return error(hepErrorTimeout, "rank %d: phase '%s': the rendezvous did not answer in time", rank,
               phase);
}

}  // namespace

Bootstrap::Bootstrap(Descriptor socket, int rank, int num_ranks)
    : socket_(std::move(socket)), rank_(rank), num_ranks_(num_ranks) {}

Bootstrap::~Bootstrap() {
  // A forked child may hold the connection, too, and must not keep it alive.
  ::shutdown(socket_.get(), SHUT_RDWR);
}

Status Bootstrap::join(const hepUniqueId_t& id, int rank, int num_ranks, Deadline deadline,
                       std::unique_ptr<Bootstrap>* out) {
  HEP_TRY(check_rank(rank, num_ranks));
  Rendezvous rendezvous;
  const Status read = read_unique_id(id, &rendezvous);
  if (!read.ok()) return error(read.result(), "rank %d: %s", rank, read.message().c_str());

  Descriptor socket;
  HEP_TRY(reach_hub(rendezvous, rank, num_ranks, deadline, &socket));
  auto bootstrap = std::make_unique<Bootstrap>(std::move(socket), rank, num_ranks);
  HEP_TRY(bootstrap->all_gather(nullptr, nullptr, 0, "join", deadline));
  *out = std::move(bootstrap);
  return Status();
}

void decline(const hepUniqueId_t& id, int rank, int num_ranks) {
  Rendezvous rendezvous;
  Descriptor socket;
  if (!read_unique_id(id, &rendezvous).ok()) return;
  if (!reach_hub(rendezvous, rank, num_ranks, Deadline::after_ms(kDeclineMs), &socket, kDeclinedMs)
           .ok())
    return;  // then the hub is gone
  ::shutdown(socket.get(), SHUT_RDWR);
}

Status Bootstrap::all_gather(const void* send, void* receive, size_t bytes, const char* phase,
                             Deadline deadline) {
  if (bytes > kMaxBytes)
    return error(hepErrorInvalidArgument, "rank %d: phase '%s': %zu bytes are more than %zu", rank_,
                 phase, bytes, kMaxBytes);
  if (failure_.ok()) failure_ = exchange(send, receive, bytes, phase, deadline);
  return failure_;
}

void Bootstrap::fail(const Status& failure) {
  const Frame frame = make_failure_frame(failure);
  // The socket has room for it: the hub has read all that came before. If the hub is gone, the end
  // of its connections tells the others.
  (void)send_all(socket_.get(), frame->data(), frame->size(), Deadline::after_ms(0));
}

Status Bootstrap::exchange(const void* send, void* receive, size_t bytes, const char* phase,
                           Deadline deadline) {
  wire::Gather gather{};
  gather.sequence = sequence_++;
  gather.remaining_ms = deadline.remaining_ms();
  std::snprintf(gather.phase, sizeof gather.phase, "%s", phase);
  const auto header = wire::make_header(wire::FrameType::kGather, sizeof gather + bytes);
  std::vector<char> frame(sizeof header + sizeof gather + bytes);
  std::memcpy(frame.data(), &header, sizeof header);
  std::memcpy(frame.data() + sizeof header, &gather, sizeof gather);
  if (bytes > 0) std::memcpy(frame.data() + sizeof header + sizeof gather, send, bytes);

  // Past the deadline the hub tells who is missing. The rank's own sentence is the second best.
  const auto patience = Deadline::after_ms(int64_t{deadline.remaining_ms()} + wire::kExplanationMs);
  const int socket = socket_.get();
  Io io = send_all(socket, frame.data(), frame.size(), patience);
  wire::FrameHeader answer;
  // A hub that is gone may have told why before.
  if (io != Io::kExpired) io = receive_all(socket, &answer, sizeof answer, patience);
  if (io == Io::kDone) {
    if (answer.magic != wire::kMagic || answer.version != wire::kVersion)
      return error(hepErrorInternal,
                   "rank %d: phase '%s': the rendezvous answered with something else than a frame",
                   rank_, phase);
    if (answer.type == wire::FrameType::kFailure) return read_error(answer.length, phase, patience);
    if (answer.type != wire::FrameType::kResult || answer.length != bytes * num_ranks_)
      return error(hepErrorInternal,
                   "rank %d: phase '%s': the rendezvous answered with a frame of type %d and %u "
                   "bytes",
                   rank_, phase, static_cast<int>(answer.type), answer.length);
    io = receive_all(socket, receive, answer.length, patience);
  }
  if (io == Io::kClosed) return lost(rank_, phase);
  if (io == Io::kExpired) return no_answer(rank_, phase);
  return Status();
}

Status Bootstrap::read_error(size_t length, const char* phase, Deadline deadline) {
  wire::Failure failure{};
  std::string text(std::min(length - std::min(length, sizeof failure), wire::kMaxTextBytes), '\0');
  Io io = receive_all(socket_.get(), &failure, sizeof failure, deadline);
  if (io == Io::kDone) io = receive_all(socket_.get(), text.data(), text.size(), deadline);
  if (io == Io::kClosed) return lost(rank_, phase);
  if (io == Io::kExpired) return no_answer(rank_, phase);
  if (text.rfind("phase '", 0) != 0) text = "phase '" + std::string(phase) + "': " + text;
  return error(failure_of(failure.result), "rank %d: %s", rank_, text.c_str());
}

}  // namespace hep
