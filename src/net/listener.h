// SPDX-License-Identifier: Apache-2.0
// A listener is a listening socket with the addresses that lead to it. The system chooses the port.
#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <vector>

#include "base/descriptor.h"
#include "base/status.h"

namespace hep {

struct Listener {
  Descriptor socket;
  uint16_t port = 0;
  std::vector<in6_addr> addresses;  // in the order in which others should try them

  // Ends the listening, even where a forked child holds the socket, too.
  void close();
};

// A unique id has the first kMaxAddresses addresses alone.
void warn_of_addresses_left_out(const std::vector<in6_addr>& addresses);

// Listens at one address of this machine.
Status listen_at(const in6_addr& address, Listener* out);

// Listens at IPv4 loopback, which reaches this machine alone.
Status listen_at_loopback(Listener* out);

// Listens on all interfaces. The addresses are loopback first, then those of the interfaces that
// are up, IPv4 before IPv6.
Status listen_everywhere(Listener* out);

}  // namespace hep
