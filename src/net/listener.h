// SPDX-License-Identifier: Apache-2.0
// The hub's listening socket, and the addresses at which it can be reached.
#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <vector>

#include "bootstrap/bootstrap.h"
#include "descriptor.h"
#include "status.h"

namespace hep {

// Listens on a port that the system chooses: for the network on all interfaces, or on
// HEP_RENDEZVOUS_ADDRESS alone; for this machine on loopback alone, whatever is set.
// `addresses`: loopback first, then those of the interfaces that are up, IPv4 before IPv6.
Status open_listener(Reach reach, Descriptor* listener, uint16_t* port,
                     std::vector<in6_addr>* addresses);

// The same, on all interfaces whatever HEP_RENDEZVOUS_ADDRESS says.
Status listen_everywhere(Descriptor* listener, uint16_t* port, std::vector<in6_addr>* addresses);

}  // namespace hep
