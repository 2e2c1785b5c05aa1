// SPDX-License-Identifier: Apache-2.0
// The hub: one thread that lets ranks in which prove the secret, and relays their all-gathers.
#pragma once

#include "net/listener.h"
#include "net/siphash.h"

namespace hep {

// Serves one communicator on a listening socket. Returns when all ranks have left, or when none came
// within `timeout_ms`. Strangers never end it, nor hold it up.
void run_hub(Listener listener, const SipKey& secret, int timeout_ms);

}  // namespace hep
