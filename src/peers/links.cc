// SPDX-License-Identifier: Apache-2.0
#include "peers/links.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <string>

#include "identity.h"
#include "layout.h"
#include "net/frames.h"
#include "net/handshake.h"
#include "net/listener.h"
#include "net/socket.h"

namespace hep {
namespace {

// Addresses that do not answer must not use up the time for those that do.
constexpr int kConnectMs = 2000;

// Between two rounds over the addresses of a process.
constexpr int kRetryMs = 20;

// Connections that have not proved themselves; past it, the newest takes the oldest's place.
constexpr size_t kMaxStrangers = 2 * kMaxRanks;

// Tries the addresses of a process in turn, again and again.
Status reach(const LinkAddress& own, const LinkAddress& other, int own_process, int num_processes,
             const std::string& name, Deadline deadline, Descriptor* out) {
  std::string reasons;
  const int count = std::min<int>(other.num_addresses, Rendezvous::kMaxAddresses);
  do {
    reasons.clear();
    for (int i = 0; i < count; ++i) {
      const in6_addr& address = other.addresses[i];
      if (is_loopback(address) && other.host != own.host) continue;
      Descriptor socket;
      Status attempt =
          connect_to(socket_address(address, other.port), earlier(deadline, kConnectMs), &socket);
      if (attempt.ok())
        attempt = prove(socket.get(), other.secret, own_process, num_processes,
                        deadline.remaining_ms(), earlier(deadline, wire::kProofMs));
      if (attempt.ok()) {
        *out = std::move(socket);
        return Status();
      }
      reasons += (reasons.empty() ? "" : "; ") + address_text(address, other.port) + ": " +
                 attempt.message();
    }
    ::poll(nullptr, 0, std::min(kRetryMs, deadline.remaining_ms()));
  } while (!deadline.expired());
  return error(hepErrorTimeout, "no connection to the process of %s in time (%s)", name.c_str(),
               reasons.empty() ? "it has no address that others reach" : reasons.c_str());
}

// What answers a challenge.
struct JoinFrame {
  wire::FrameHeader header;
  wire::Join join;
} __attribute__((packed));

struct ChallengeFrame {
  wire::FrameHeader header;
  wire::Challenge challenge;
} __attribute__((packed));

struct WelcomeFrame {
  wire::FrameHeader header;
  wire::Welcome welcome;
} __attribute__((packed));

// poll() then wakes when so many bytes have arrived, or the connection ended.
void await_bytes(int socket, int bytes) {
  ::setsockopt(socket, SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof bytes);
}

bool is_join(const wire::FrameHeader& header) {
  return header.magic == wire::kMagic && header.version == wire::kVersion &&
         header.type == wire::FrameType::kJoin && header.length == sizeof(wire::Join);
}

}  // namespace

Status Links::open() {
  std::vector<in6_addr> addresses;
  // The address that the setting names belongs to the machine of the rendezvous, perhaps not to this.
  if (!open_listener(Reach::kNetwork, &listener_, &address_.port, &addresses).ok())
    HEP_TRY(listen_everywhere(&listener_, &address_.port, &addresses));
  address_.num_addresses =
      static_cast<uint16_t>(std::min<size_t>(addresses.size(), Rendezvous::kMaxAddresses));
  std::copy_n(addresses.begin(), address_.num_addresses, address_.addresses);
  address_.host = host_identity();
  return random_bytes(address_.secret.data(), address_.secret.size());
}

// Each connects to those before it and then takes the connections of those behind it. The first
// only takes, so somebody always answers.
Status Links::connect(const std::vector<LinkAddress>& addresses, int process,
                      const std::vector<std::string>& names, Deadline deadline) {
  sockets_.resize(addresses.size());
  for (int other = 0; other < process; ++other)
    HEP_TRY(reach(address_, addresses[other], process, static_cast<int>(addresses.size()),
                  names[other], deadline, &sockets_[other]));
  HEP_TRY(accept_others(process, names, deadline));
  ::shutdown(listener_.get(), SHUT_RDWR);  // a forked child may hold it too
  listener_.reset();
  return Status();
}

Status Links::accept_stranger(std::deque<Stranger>* strangers) {
  Descriptor socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!socket.valid()) {
    if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return Status();
    return system_error("a connection of another process could not be accepted");
  }
  wire::set_socket_options(socket.get());
  await_bytes(socket.get(), sizeof(JoinFrame));
  ChallengeFrame frame{wire::make_header(wire::FrameType::kChallenge, sizeof(wire::Challenge)), {}};
  HEP_TRY(random_bytes(frame.challenge.nonce.data(), frame.challenge.nonce.size()));
  if (::send(socket.get(), &frame, sizeof frame, MSG_NOSIGNAL) != sizeof frame) return Status();
  if (strangers->size() == kMaxStrangers) strangers->pop_front();
  strangers->push_back({std::move(socket), frame.challenge.nonce});
  return Status();
}

// Makes a stranger that knows this process's secret the connection to the process it says it is. One
// whose other end has given up meanwhile has not answered the challenge.
void Links::admit(Stranger stranger, int process, Deadline deadline) {
  const int socket = stranger.socket.get();
  JoinFrame frame;
  if (::recv(socket, &frame, sizeof frame, 0) != sizeof frame || !is_join(frame.header)) return;
  const wire::Join join = frame.join;
  const int num_processes = static_cast<int>(sockets_.size());
  const uint64_t expected =
      wire::make_proof(address_.secret, wire::Side::kRank, stranger.nonce, join);
  if (!wire::equal_proofs(join.proof, expected) || join.rank <= process ||
      join.rank >= num_processes || join.num_ranks != num_processes)
    return;
  await_bytes(socket, 1);
  const WelcomeFrame answer{
      wire::make_header(wire::FrameType::kWelcome, sizeof(wire::Welcome)),
      {wire::make_proof(address_.secret, wire::Side::kHub, stranger.nonce, join)}};
  if (send_all(socket, &answer, sizeof answer, earlier(deadline, wire::kProofMs)) == Io::kDone)
    sockets_[join.rank] = std::move(stranger.socket);
}

Status Links::accept_others(int process, const std::vector<std::string>& names, Deadline deadline) {
  std::deque<Stranger> strangers;
  for (;;) {
    const auto missing = std::find_if(sockets_.begin() + process + 1, sockets_.end(),
                                      [](const Descriptor& socket) { return !socket.valid(); });
    if (missing == sockets_.end()) return Status();
    if (deadline.expired())
      return error(hepErrorTimeout, "no connection from the process of %s in time",
                   names[missing - sockets_.begin()].c_str());

    std::vector<pollfd> entries;
    for (const Stranger& stranger : strangers)
      entries.push_back({stranger.socket.get(), POLLIN, 0});
    entries.push_back({listener_.get(), POLLIN, 0});
    if (::poll(entries.data(), entries.size(), deadline.remaining_ms()) < 0) {
      if (errno == EINTR) continue;
      return system_error("poll failed");
    }
    std::deque<Stranger> silent;
    for (size_t i = 0; i < strangers.size(); ++i) {
      if (entries[i].revents == 0)
        silent.push_back(std::move(strangers[i]));
      else
        admit(std::move(strangers[i]), process, deadline);
    }
    strangers = std::move(silent);
    if (entries.back().revents != 0) HEP_TRY(accept_stranger(&strangers));
  }
}

}  // namespace hep
