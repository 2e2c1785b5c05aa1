// SPDX-License-Identifier: Apache-2.0
// Addresses of the network are IPv6; those of IPv4 are v4-mapped.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace hep {

// A process offers at most this many addresses to its peers.
constexpr size_t kMaxAddresses = 5;

// Returns false unless the text is the IPv4 or IPv6 address of one interface.
bool parse_address(const std::string& text, in6_addr* address);

bool is_loopback(const in6_addr& address);

in6_addr v4_mapped(in_addr address);

// Gives for example 10.0.0.1:4312 or [fd00::1]:4312.
std::string address_text(const in6_addr& address, uint16_t port);

// Returns those addresses of a machine that can lead there. Loopback leads to the own machine
// alone.
std::vector<in6_addr> reachable(const std::vector<in6_addr>& addresses, bool same_host);

// Socket calls take and return this. It has the family that the address really has.
struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  int family() const { return storage.ss_family; }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }

  // Gives what address_text gives.
  std::string text() const;
};

SocketAddress socket_address(const in6_addr& address, uint16_t port);

}  // namespace hep
