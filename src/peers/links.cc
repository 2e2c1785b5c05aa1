// SPDX-License-Identifier: Apache-2.0
#include "peers/links.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <string>

#include "bootstrap/handshake.h"
#include "bootstrap/listen.h"
#include "bootstrap/socket_io.h"
#include "bootstrap/wire.h"
#include "identity.h"

namespace hep {
namespace {

constexpr uint64_t kMagic = 0x4845504c494e4b31u;

// Addresses that do not answer must not use up the time for those that do.
constexpr int kConnectMs = 2000;

// Between two rounds over the addresses of a process.
constexpr int kRetryMs = 20;

// Connections that have not proved themselves; past it, the newest takes the oldest's place.
constexpr size_t kMaxStrangers = 64;

// What either side of a new connection says: the connecting one with the token of the other, which
// answers with the token of the first.
struct Greeting {
  uint64_t magic;
  uint64_t token[2];
  uint64_t process;  // the sender's
};

Greeting greeting_to(const LinkAddress& other, int own_process) {
  return {kMagic, {other.token[0], other.token[1]}, static_cast<uint64_t>(own_process)};
}

// The time it takes tells nothing of where two tokens differ.
bool knows(const Greeting& greeting, const LinkAddress& own) {
  const volatile uint64_t difference =
      (greeting.token[0] ^ own.token[0]) | (greeting.token[1] ^ own.token[1]);
  return greeting.magic == kMagic && difference == 0;
}

Status greet(int socket, const LinkAddress& own, const LinkAddress& other, int own_process,
             int other_process, Deadline deadline) {
  const Greeting mine = greeting_to(other, own_process);
  Greeting answer;
  Io io = send_all(socket, &mine, sizeof mine, deadline);
  if (io == Io::kDone) io = receive_all(socket, &answer, sizeof answer, deadline);
  if (io != Io::kDone) return error(hepErrorSystem, "%s", io_text(io));
  if (!knows(answer, own) || answer.process != static_cast<uint64_t>(other_process))
    return error(hepErrorSystem, "another service answers there");
  return Status();
}

// Tries the addresses of a process in turn, again and again.
Status reach(const LinkAddress& own, const LinkAddress& other, int own_process, int other_process,
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
        attempt = greet(socket.get(), own, other, own_process, other_process,
                        earlier(deadline, wire::kProofMs));
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

// Wakes poll() only when a greeting has arrived whole, or the connection ended.
void await_whole_greeting(int socket) {
  const int bytes = sizeof(Greeting);
  ::setsockopt(socket, SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof bytes);
}

void await_any_byte(int socket) {
  const int bytes = 1;
  ::setsockopt(socket, SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof bytes);
}

Status accept_stranger(int listener, std::deque<Descriptor>* strangers) {
  Descriptor stranger(::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!stranger.valid()) {
    if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return Status();
    return system_error("a connection of another process could not be accepted");
  }
  wire::set_socket_options(stranger.get());
  await_whole_greeting(stranger.get());
  if (strangers->size() == kMaxStrangers) strangers->pop_front();
  strangers->push_back(std::move(stranger));
  return Status();
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
  return random_bytes(address_.token, sizeof address_.token);
}

// Each connects to those before it and then takes the connections of those behind it. The first
// only takes, so somebody always answers.
Status Links::connect(const std::vector<LinkAddress>& addresses, int process,
                      const std::vector<std::string>& names, Deadline deadline) {
  sockets_.resize(addresses.size());
  for (int other = 0; other < process; ++other)
    HEP_TRY(reach(address_, addresses[other], process, other, names[other], deadline,
                  &sockets_[other]));
  HEP_TRY(accept_others(process, addresses, names, deadline));
  ::shutdown(listener_.get(), SHUT_RDWR);  // a forked child may hold it too
  listener_.reset();
  return Status();
}

// Makes a stranger that knows this process's token the connection to the process it says it is.
void Links::admit(Descriptor stranger, int process, const std::vector<LinkAddress>& addresses,
                  Deadline deadline) {
  Greeting greeting;
  if (::recv(stranger.get(), &greeting, sizeof greeting, 0) != sizeof greeting) return;
  const bool expected = knows(greeting, address_) && greeting.process < addresses.size() &&
                        greeting.process > static_cast<uint64_t>(process);
  if (!expected) return;
  await_any_byte(stranger.get());
  const Greeting answer = greeting_to(addresses[greeting.process], process);
  if (send_all(stranger.get(), &answer, sizeof answer, earlier(deadline, wire::kProofMs)) ==
      Io::kDone)
    sockets_[greeting.process] = std::move(stranger);
}

Status Links::accept_others(int process, const std::vector<LinkAddress>& addresses,
                            const std::vector<std::string>& names, Deadline deadline) {
  std::deque<Descriptor> strangers;
  for (;;) {
    const auto missing = std::find_if(sockets_.begin() + process + 1, sockets_.end(),
                                      [](const Descriptor& socket) { return !socket.valid(); });
    if (missing == sockets_.end()) return Status();
    if (deadline.expired())
      return error(hepErrorTimeout, "no connection from the process of %s in time",
                   names[missing - sockets_.begin()].c_str());

    std::vector<pollfd> entries;
    for (const Descriptor& stranger : strangers) entries.push_back({stranger.get(), POLLIN, 0});
    entries.push_back({listener_.get(), POLLIN, 0});
    if (::poll(entries.data(), entries.size(), deadline.remaining_ms()) < 0) {
      if (errno == EINTR) continue;
      return system_error("poll failed");
    }
    std::deque<Descriptor> silent;
    for (size_t i = 0; i < strangers.size(); ++i) {
      if (entries[i].revents == 0)
        silent.push_back(std::move(strangers[i]));
      else
        admit(std::move(strangers[i]), process, addresses, deadline);
    }
    strangers = std::move(silent);
    if (entries.back().revents != 0) HEP_TRY(accept_stranger(listener_.get(), &strangers));
  }
}

}  // namespace hep
