// SPDX-License-Identifier: Apache-2.0
#include "net/address.h"

#include <arpa/inet.h>

#include <algorithm>
#include <cstring>
#include <iterator>

namespace hep {

bool parse_address(const std::string& text, in6_addr* address) {
  in_addr v4;
  if (::inet_pton(AF_INET, text.c_str(), &v4) == 1) {
    *address = v4_mapped(v4);
    return v4.s_addr != htonl(INADDR_ANY);
  }
  return ::inet_pton(AF_INET6, text.c_str(), address) == 1 && !IN6_IS_ADDR_UNSPECIFIED(address);
}

bool is_loopback(const in6_addr& address) {
  return IN6_IS_ADDR_LOOPBACK(&address) ||
         (IN6_IS_ADDR_V4MAPPED(&address) && address.s6_addr[12] == IN_LOOPBACKNET);
}

in6_addr v4_mapped(in_addr address) {
  in6_addr mapped{};
  mapped.s6_addr[10] = mapped.s6_addr[11] = 0xff;
  std::memcpy(mapped.s6_addr + 12, &address, sizeof address);
  return mapped;
}

std::string address_text(const in6_addr& address, uint16_t port) {
  char text[INET6_ADDRSTRLEN] = "?";
  if (IN6_IS_ADDR_V4MAPPED(&address)) {
    ::inet_ntop(AF_INET, address.s6_addr + 12, text, sizeof text);
    return std::string(text) + ":" + std::to_string(port);
  }
  ::inet_ntop(AF_INET6, &address, text, sizeof text);
  return "[" + std::string(text) + "]:" + std::to_string(port);
}

std::vector<in6_addr> reachable(const std::vector<in6_addr>& addresses, bool same_host) {
  std::vector<in6_addr> result;
  std::copy_if(addresses.begin(), addresses.end(), std::back_inserter(result),
               [same_host](const in6_addr& address) { return same_host || !is_loopback(address); });
  return result;
}

std::string SocketAddress::text() const {
  if (family() == AF_INET) {
    sockaddr_in v4;
    std::memcpy(&v4, &storage, sizeof v4);
    return address_text(v4_mapped(v4.sin_addr), ntohs(v4.sin_port));
  }
  if (family() != AF_INET6) return "an unnamed address";
  sockaddr_in6 v6;
  std::memcpy(&v6, &storage, sizeof v6);
  return address_text(v6.sin6_addr, ntohs(v6.sin6_port));
}

SocketAddress socket_address(const in6_addr& address, uint16_t port) {
  SocketAddress result;
  if (IN6_IS_ADDR_V4MAPPED(&address)) {
    sockaddr_in v4{};
    v4.sin_family = AF_INET;
    v4.sin_port = htons(port);
    std::memcpy(&v4.sin_addr, address.s6_addr + 12, sizeof v4.sin_addr);
    std::memcpy(&result.storage, &v4, sizeof v4);
    result.length = sizeof v4;
  } else {
    sockaddr_in6 v6{};
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(port);
    v6.sin6_addr = address;
    std::memcpy(&result.storage, &v6, sizeof v6);
    result.length = sizeof v6;
  }
  return result;
}

}  // namespace hep
