// SPDX-License-Identifier: Apache-2.0
// A unique id says where the hub listens, and has the secret that proves the right to join.
#pragma once

#include <hybridep.h>
#include <netinet/in.h>

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "net/siphash.h"

namespace hep {

struct Rendezvous {
  std::vector<in6_addr> addresses;  // of the hub, to be tried in this order
  uint16_t port;
  uint64_t host;  // of host_fingerprint
  SipKey secret;
};

hepUniqueId_t write_unique_id(const Rendezvous& rendezvous);

// Returns hepErrorInvalidArgument for bytes that are not an id or were damaged, and
// hepErrorMismatch for an id of another version of the library.
Status read_unique_id(const hepUniqueId_t& id, Rendezvous* rendezvous);

// Returns a number for this boot of this machine. It is keyed, so that an id does not identify the
// machine to those who do not take part.
uint64_t host_fingerprint(const SipKey& secret);

}  // namespace hep
