// SPDX-License-Identifier: Apache-2.0
// Makes TCP sockets that do not block, and moves bytes in and out by a deadline.
#pragma once

#include <cstddef>

#include "base/deadline.h"
#include "base/descriptor.h"
#include "base/status.h"
#include "net/address.h"

namespace hep {

// hepErrorTimeout      there was no answer
// hepErrorUnreachable  there is no way, or nobody listens there
// Every other error is this machine's own, which gives no socket.
Status connect_to(const SocketAddress& address, Deadline deadline, Descriptor* out);

// Makes a connection send small messages at once and notice that the other machine is dead.
void set_connection_options(int socket);

// Returns whether an event of poll, errors included, came before the deadline.
bool wait_for_event(int socket, short events, Deadline deadline);

enum class Io { kDone, kClosed, kExpired };

// Says why it was not done.
const char* io_text(Io io);

// Move `size` bytes.
Io send_all(int socket, const void* data, size_t size, Deadline deadline);
Io receive_all(int socket, void* data, size_t size, Deadline deadline);

}  // namespace hep
