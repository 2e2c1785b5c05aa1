// SPDX-License-Identifier: Apache-2.0
#include "net/socket.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>

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

Status no_connection(int code) {
  return error(hepErrorUnreachable, "no connection: %s", system_text(code).c_str());
}

}  // namespace

Status connect_to(const SocketAddress& address, Deadline deadline, Descriptor* out) {
  Descriptor socket(::socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return system_error("no socket");
  set_connection_options(socket.get());
  if (::connect(socket.get(), address.get(), address.length) != 0) {
    if (errno != EINPROGRESS) return no_connection(errno);
    if (!wait_for_event(socket.get(), POLLOUT, deadline))
      return error(hepErrorTimeout, "no answer");
    int failure = 0;
    socklen_t length = sizeof failure;
    ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &failure, &length);
    if (failure != 0) return no_connection(failure);
  }
  *out = std::move(socket);
  return Status();
}

void set_connection_options(int socket) {
  // Failures are ignored: a connection works without these options, only slower.
  const auto set = [socket](int level, int option, int value) {
    ::setsockopt(socket, level, option, &value, sizeof value);
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 10);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_KEEPCNT, 4);
}

bool wait_for_event(int socket, short events, Deadline deadline) {
  pollfd entry{socket, events, 0};
  for (;;) {
    const int ready = ::poll(&entry, 1, deadline.remaining_ms());
    if (ready > 0) return true;
    if (deadline.expired() || (ready < 0 && errno != EINTR)) return false;
  }
}

const char* io_text(Io io) { return io == Io::kClosed ? "connection closed" : "no answer"; }

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

}  // namespace hep
