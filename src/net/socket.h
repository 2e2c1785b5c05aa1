// SPDX-License-Identifier: Apache-2.0
// TCP connections that do not block, and how they are made.
#pragma once

#include "bootstrap/unique_id.h"
#include "deadline.h"
#include "descriptor.h"
#include "status.h"

namespace hep {

// The deadline, or `milliseconds` from now if that is earlier.
Deadline earlier(Deadline deadline, int milliseconds);

Status connect_to(const SocketAddress& address, Deadline deadline, Descriptor* out);

}  // namespace hep
