// SPDX-License-Identifier: Apache-2.0
#include "net/socket.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "net/frames.h"
#include "net/handshake.h"

namespace hep {

Deadline earlier(Deadline deadline, int milliseconds) {
  return Deadline::after_ms(std::min(deadline.remaining_ms(), milliseconds));
}

Status connect_to(const SocketAddress& address, Deadline deadline, Descriptor* out) {
  Descriptor socket(::socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return system_error("no socket");
  wire::set_socket_options(socket.get());
  if (::connect(socket.get(), address.get(), address.length) != 0) {
    if (errno != EINPROGRESS) return system_error("no connection");
    if (!wait_for_event(socket.get(), POLLOUT, deadline)) return error(hepErrorSystem, "no answer");
    int failure = 0;
    socklen_t length = sizeof failure;
    ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &failure, &length);
    errno = failure;
    if (failure != 0) return system_error("no connection");
  }
  *out = std::move(socket);
  return Status();
}

void wire::set_socket_options(int socket) {
  // Failures are ignored: a connection works without these, only slower.
  const auto set = [socket](int level, int option, int value) {
    ::setsockopt(socket, level, option, &value, sizeof value);
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 10);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_KEEPCNT, 4);
}

}  // namespace hep
