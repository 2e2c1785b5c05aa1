// SPDX-License-Identifier: Apache-2.0
// Addresses of the network: IPv6, or IPv4 as v4-mapped IPv6.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace hep {

// Most addresses that a process offers to those who are to reach it.
constexpr size_t kMaxAddresses = 5;

// False unless the text is an IPv4 or IPv6 address that a socket can be bound to alone.
bool parse_address(const std::string& text, in6_addr* address);

bool is_loopback(const in6_addr& address);

in6_addr v4_mapped(in_addr address);

// For example 10.0.0.1:4312 or [fd00::1]:4312.
std::string address_text(const in6_addr& address, uint16_t port);

// The addresses of a machine that this one can try. Loopback leads to this machine alone.
std::vector<in6_addr> reachable(const std::vector<in6_addr>& addresses, bool same_host);

// What socket calls take and return, in the family that the address really has.
struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  int family() const { return storage.ss_family; }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }

  // As address_text, for the addresses of IPv4 and IPv6.
  std::string text() const;
};

SocketAddress socket_address(const in6_addr& address, uint16_t port);

}  // namespace hep
