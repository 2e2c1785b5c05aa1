// SPDX-License-Identifier: Apache-2.0
// The rank's end of a connection: bytes in and out by a deadline, and the handshake with the hub.
#pragma once

#include <cstddef>
#include <cstdint>

#include "deadline.h"
#include "net/siphash.h"
#include "status.h"

namespace hep {

// Whether an event of poll, errors included, came before the deadline.
bool wait_for_event(int socket, short events, Deadline deadline);

enum class Io { kDone, kClosed, kExpired };

// What kept it from being done.
const char* io_text(Io io);

// Move `size` bytes over a socket that does not block.
Io send_all(int socket, const void* data, size_t size, Deadline deadline);
Io receive_all(int socket, void* data, size_t size, Deadline deadline);

// Each side shows the other that it has the secret, and does not show the secret.
Status prove(int socket, const SipKey& secret, int rank, int num_ranks, uint32_t remaining_ms,
             Deadline deadline);

}  // namespace hep
