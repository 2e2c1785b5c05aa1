// SPDX-License-Identifier: Apache-2.0
// The hub lets in ranks that prove the secret, and relays their all-gathers. It is one thread.
#pragma once

#include "net/listener.h"
#include "net/siphash.h"

namespace hep {

// Serves one communicator on a listening socket. Returns when all ranks have left, or when none
// came within `timeout_ms`. Strangers neither end it nor hold it up.
void run_hub(Listener listener, const SipKey& secret, int timeout_ms);

}  // namespace hep
