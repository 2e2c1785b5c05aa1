// SPDX-License-Identifier: Apache-2.0
// The check that the NICs of a rail reach each other.
#pragma once

#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/status.h"
#include "network/transport.h"

namespace hep {

// A NIC of this rank, and the names for errors: own[nic], peers[domain][nic].
struct GreetingNames {
  std::vector<std::string> own;
  std::vector<std::vector<std::string>> peers;
};

// Collective on a rail: over each NIC every rank writes to that of the same number of each peer.
// Returns when all have heard all, so that connections exist. The error names pairs of NICs:
// hepErrorNetwork, or hepErrorTimeout where the deadline was interrupted.
Status greet(const std::vector<Transport*>& nics, int domain, const GreetingNames& names,
             Deadline deadline);

}  // namespace hep
