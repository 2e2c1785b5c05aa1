// SPDX-License-Identifier: Apache-2.0
// What a unique id says: where the hub listens, and the secret that proves the right to join.
#pragma once

#include <hybridep.h>
#include <netinet/in.h>

#include <cstdint>
#include <string>
#include <vector>

#include "net/siphash.h"
#include "status.h"

namespace hep {

struct Rendezvous {
  static constexpr size_t kMaxAddresses = 5;

  std::vector<in6_addr> addresses;  // to be tried in this order; IPv4 ones are v4-mapped
  uint16_t port;
  uint64_t host;  // of host_fingerprint
  SipKey secret;
};

hepUniqueId_t write_unique_id(const Rendezvous& rendezvous);

// hepErrorInvalidArgument for bytes that are not an id or were damaged, hepErrorMismatch for an id of
// another version of the library.
Status read_unique_id(const hepUniqueId_t& id, Rendezvous* rendezvous);

// Tells one machine, since it was started, from others. Keyed, so that an id does not identify the
// machine to those who do not take part.
uint64_t host_fingerprint(const SipKey& secret);

bool is_loopback(const in6_addr& address);

// A socket address of the family that the address really has.
struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
  int family() const { return storage.ss_family; }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};
SocketAddress socket_address(const in6_addr& address, uint16_t port);

// For example 10.0.0.1:4312 or [fd00::1]:4312.
std::string address_text(const in6_addr& address, uint16_t port);

in6_addr v4_mapped(in_addr address);

}  // namespace hep
