// SPDX-License-Identifier: Apache-2.0
#include "memory/descriptor_exchange.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <string>

#include "base/identity.h"
#include "base/sentence.h"
#include "net/doorway.h"

namespace hep {
namespace {

constexpr int kRetryMs = 2;           // pause before a delivery that the kernel put off is retried
constexpr size_t kMaxStrangers = 32;  // connections that have not spoken yet
constexpr uint64_t kGreetingMagic = 0x4845504445534331u;

// The message that travels beside a descriptor.
struct Greeting {
  uint64_t magic;
  uint64_t token;  // the receiver's
  uint64_t rank;   // the sender's
};

// What the kernel says of the other end, whatever the other end claims.
bool get_credentials(int socket, ucred* credentials) {
  socklen_t length = sizeof *credentials;
  return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, credentials, &length) == 0;
}

bool is_same_user(int socket) {
  ucred credentials{};
  return get_credentials(socket, &credentials) && credentials.uid == ::geteuid();
}

// Returns whether the other end is the process of an address. Its id counts only if it means the
// same process here.
bool is_process_of(int socket, const DescriptorAddress& address) {
  ucred credentials{};
  if (!get_credentials(socket, &credentials) || credentials.uid != ::geteuid()) return false;
  return address.process_namespace != process_namespace() || credentials.pid == address.process_id;
}

ssize_t send_descriptor(int socket, const Greeting& greeting, int descriptor) {
  iovec part{const_cast<Greeting*>(&greeting), sizeof greeting};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
  return ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

// Returns the length of the packet. There is room for one descriptor only; the kernel drops all
// others that a stranger may have sent.
ssize_t receive_descriptor(int socket, Greeting* greeting, Descriptor* descriptor) {
  iovec part{greeting, sizeof *greeting};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = CMSG_LEN(sizeof(int));
  const ssize_t length = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT | MSG_TRUNC);
  if (length < 0) return length;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header != nullptr && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
      header->cmsg_len == CMSG_LEN(sizeof(int))) {
    int number;
    std::memcpy(&number, CMSG_DATA(header), sizeof number);
    *descriptor = Descriptor(number);
  }
  return length;
}

// Returns whether a delivery may succeed later: the queue was full, too much was open or under way,
// or the receiver took the connection for that of a silent stranger.
bool is_passing(int code) {
  return code == EAGAIN || code == EINTR || code == ETOOMANYREFS || code == EMFILE ||
         code == ENFILE || code == ENOBUFS || code == ENOMEM || code == EPIPE || code == ECONNRESET;
}

// One call of exchange_descriptors(). Sends and receives take turns. Descriptors that are under way
// count against a limit of the user, so a rank that only sent could wait for itself.
class Exchange final : private Doorway::Keeper {
 public:
  Exchange(const Descriptor& listener, const DescriptorAddress& own, int rank,
           const std::vector<int>& peers, const std::vector<DescriptorAddress>& addresses,
           const DescriptorReceiver& receive)
      : doorway_(listener, *this, kMaxStrangers),
        own_(own),
        rank_(rank),
        addresses_(addresses),
        receive_(receive),
        to_send_(peers.begin(), peers.end()),
        to_receive_(peers) {
    // Every rank begins with another peer.
    const auto next =
        std::find_if(to_send_.begin(), to_send_.end(), [rank](int peer) { return peer > rank; });
    std::rotate(to_send_.begin(), next, to_send_.end());
  }

  Status run(Deadline deadline) {
    while (true) {
      send_all();
      if (to_send_.empty() && to_receive_.empty()) return failure_;
      if (deadline.expired()) break;
      HEP_TRY(wait_and_serve(deadline));
    }
    if (!failure_.ok()) return failure_;
    if (!to_receive_.empty())
      return error(hepErrorTimeout, "rank %d: no file descriptor came in time from %s", rank_,
                   rank_list(to_receive_).c_str());
    return error(
        hepErrorTimeout, "rank %d: its file descriptor could not be sent in time to %s: %s", rank_,
        rank_list({to_send_.begin(), to_send_.end()}).c_str(), system_text(send_error_).c_str());
  }

 private:
  enum class Delivery { kDone, kAgain, kRefused };

  void fail(const Status& status) {
    if (failure_.ok()) failure_ = status;
  }

  bool expects(uint64_t peer) const {
    return peer < addresses_.size() && std::find(to_receive_.begin(), to_receive_.end(),
                                                 static_cast<int>(peer)) != to_receive_.end();
  }

  void finish(int peer, int descriptor) {
    to_receive_.erase(std::find(to_receive_.begin(), to_receive_.end(), peer));
    if (descriptor >= 0) receive_(peer, descriptor);
  }

  void send_all() {
    for (size_t tries = to_send_.size(); tries > 0; --tries) {
      const int peer = to_send_.front();
      to_send_.pop_front();
      const Delivery delivery = deliver(addresses_[peer]);
      if (delivery == Delivery::kAgain) to_send_.push_back(peer);
      // If sockets do not reach the peer, its sockets do not reach this rank either.
      if (delivery == Delivery::kRefused && expects(peer)) take(peer);
    }
  }

  Delivery deliver(const DescriptorAddress& address) {
    send_error_ = 0;
    const Descriptor socket = connect_to_offer(address);
    const Greeting greeting{kGreetingMagic, address.token, static_cast<uint64_t>(rank_)};
    if (socket.valid()) {
      if (!is_process_of(socket.get(), address))
        errno = EPERM;
      else if (send_descriptor(socket.get(), greeting, own_.descriptor) == sizeof greeting)
        return Delivery::kDone;
    }
    send_error_ = errno;
    return is_passing(send_error_) ? Delivery::kAgain : Delivery::kRefused;
  }

  void take(int peer) {
    Descriptor descriptor;
    const Status taken = take_descriptor(addresses_[peer], &descriptor);
    const uint32_t own_user = own_.user_id, user = addresses_[peer].user_id;
    if (!taken.ok() && user != own_user)
      fail(error(hepErrorSystem,
                 "rank %d cannot get the file descriptor of rank %d: the ranks run as users %u and "
                 "%u, but those on one machine must run as the same user",
                 rank_, peer, own_user, user));
    else if (!taken.ok())
      fail(error(taken.result(),
                 "rank %d cannot get the file descriptor of rank %d: its Unix socket fails (%s), "
                 "and %s; ranks in containers need a common network namespace, or a common process "
                 "namespace and the right to trace each other",
                 rank_, peer, system_text(send_error_).c_str(), taken.message().c_str()));
    finish(peer, descriptor.get());
  }

  Status wait_and_serve(Deadline deadline) {
    std::vector<pollfd> entries;
    doorway_.watch(&entries);
    const int timeout = std::min(deadline.remaining_ms(), doorway_.remaining_ms());
    const int ready = ::poll(entries.data(), entries.size(),
                             to_send_.empty() ? timeout : std::min(timeout, kRetryMs));
    if (ready < 0 && errno != EINTR) return system_error("rank %d: poll failed", rank_);
    const Status served = doorway_.serve(entries.data());
    if (served.ok()) return Status();
    return error(served.result(), "rank %d cannot accept connections of its peers: %s", rank_,
                 served.message().c_str());
  }

  // A peer speaks as soon as it has connected, so its packet has usually arrived.
  bool greet(Doorway::Stranger& stranger) override {
    return is_same_user(stranger.socket.get()) && !hear(stranger);
  }

  bool hear(Doorway::Stranger& stranger) override { return read(stranger.socket.get()); }

  // After the shutdown the other end gets an error and, if it is a peer, comes again. What it sent
  // before counts.
  void dismiss(Doorway::Stranger& stranger) override {
    ::shutdown(stranger.socket.get(), SHUT_RD);
    hear(stranger);
  }

  // Returns false if there is nothing to read yet.
  bool read(int connection) {
    Greeting greeting{};
    Descriptor descriptor;
    ssize_t length = receive_descriptor(connection, &greeting, &descriptor);
    // The kernel first looks for a packet, and then whether the other end is gone. It misses a peer
    // that spoke and left in between, so look again. (Linux 6.18: once in 400,000 connections.)
    if (length == 0) length = receive_descriptor(connection, &greeting, &descriptor);
    if (length < 0) return errno != EAGAIN && errno != EINTR;
    if (length != sizeof greeting || greeting.magic != kGreetingMagic ||
        greeting.token != own_.token || !expects(greeting.rank))
      return true;
    const int peer = static_cast<int>(greeting.rank);
    if (!is_process_of(connection, addresses_[peer])) return true;
    if (!descriptor.valid())
      fail(error(hepErrorSystem, "rank %d lost the file descriptor of rank %d: %s", rank_, peer,
                 system_text(EMFILE).c_str()));
    else if (!is_file_of(descriptor.get(), addresses_[peer]))
      return true;
    finish(peer, descriptor.get());
    return true;
  }

  Doorway doorway_;
  const DescriptorAddress& own_;
  const int rank_;
  const std::vector<DescriptorAddress>& addresses_;
  const DescriptorReceiver& receive_;
  std::deque<int> to_send_;
  std::vector<int> to_receive_;
  int send_error_ = 0;  // of the latest delivery
  Status failure_;      // the first
};

}  // namespace

Status exchange_descriptors(const Descriptor& listener, const DescriptorAddress& own, int rank,
                            const std::vector<int>& peers,
                            const std::vector<DescriptorAddress>& addresses,
                            const DescriptorReceiver& receive, Deadline deadline) {
  return Exchange(listener, own, rank, peers, addresses, receive).run(deadline);
}

}  // namespace hep
