// SPDX-License-Identifier: Apache-2.0
#include "net/listener.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "bootstrap/unique_id.h"
#include "log.h"
#include "params.h"

namespace hep {
namespace {

Status parse_address(const std::string& text, in6_addr* address) {
  in_addr v4;
  if (::inet_pton(AF_INET, text.c_str(), &v4) == 1) {
    *address = v4_mapped(v4);
    if (v4.s_addr != htonl(INADDR_ANY)) return Status();
  } else if (::inet_pton(AF_INET6, text.c_str(), address) == 1 &&
             !IN6_IS_ADDR_UNSPECIFIED(address)) {
    return Status();
  }
  return error(hepErrorInvalidArgument,
               "HEP_RENDEZVOUS_ADDRESS is \"%s\", but must be an IPv4 or IPv6 address of this "
               "machine",
               text.c_str());
}

Status listen_at(const SocketAddress& address, Descriptor* out) {
  Descriptor socket(::socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return system_error("no socket could be opened for the rendezvous");
  if (address.family() == AF_INET6) {
    // IPv4 peers are served by the same socket.
    const int v6_only = 0;
    ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &v6_only, sizeof v6_only);
  }
  if (::bind(socket.get(), address.get(), address.length) != 0)
    return system_error("the rendezvous could not be bound to its address");
  if (::listen(socket.get(), SOMAXCONN) != 0)
    return system_error("the rendezvous could not listen");
  *out = std::move(socket);
  return Status();
}

Status port_of(const Descriptor& socket, uint16_t* port) {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&storage), &length) != 0)
    return system_error("the rendezvous does not know its port");
  // Both families have the port at the same place.
  sockaddr_in v4;
  std::memcpy(&v4, &storage, sizeof v4);
  *port = ntohs(v4.sin_port);
  return Status();
}

// Addresses that other machines may reach: neither loopback nor link-local.
void add_interface_addresses(bool with_v6, std::vector<in6_addr>* addresses) {
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) {
    log_message(hepLogWarning,
                "the addresses of this machine could not be listed: %s; its rendezvous can be "
                "reached from this machine alone",
                std::strerror(errno));
    return;
  }
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(list, ::freeifaddrs);
  std::vector<in6_addr> v6;
  for (const ifaddrs* entry = list; entry; entry = entry->ifa_next) {
    if (!entry->ifa_addr || !(entry->ifa_flags & IFF_UP) || (entry->ifa_flags & IFF_LOOPBACK))
      continue;
    if (entry->ifa_addr->sa_family == AF_INET) {
      sockaddr_in address;
      std::memcpy(&address, entry->ifa_addr, sizeof address);
      const bool link_local = ntohl(address.sin_addr.s_addr) >> 16 == 0xa9fe;  // 169.254.0.0/16
      if (!link_local) addresses->push_back(v4_mapped(address.sin_addr));
    } else if (entry->ifa_addr->sa_family == AF_INET6 && with_v6) {
      sockaddr_in6 address;
      std::memcpy(&address, entry->ifa_addr, sizeof address);
      if (!IN6_IS_ADDR_LINKLOCAL(&address.sin6_addr)) v6.push_back(address.sin6_addr);
    }
  }
  addresses->insert(addresses->end(), v6.begin(), v6.end());
}

}  // namespace

Status open_listener(Reach reach, Descriptor* listener, uint16_t* port,
                     std::vector<in6_addr>* addresses) {
  if (reach == Reach::kMachine) {
    *addresses = {v4_mapped({htonl(INADDR_LOOPBACK)})};
    HEP_TRY(listen_at(socket_address(addresses->front(), 0), listener));
    return port_of(*listener, port);
  }
  const std::string wanted = setting_text("HEP_RENDEZVOUS_ADDRESS");
  if (!wanted.empty()) {
    in6_addr address;
    HEP_TRY(parse_address(wanted, &address));
    HEP_TRY(listen_at(socket_address(address, 0), listener));
    *addresses = {address};
    return port_of(*listener, port);
  }
  return listen_everywhere(listener, port, addresses);
}

Status listen_everywhere(Descriptor* listener, uint16_t* port, std::vector<in6_addr>* addresses) {
  bool with_v6 = true;
  if (!listen_at(socket_address(in6addr_any, 0), listener).ok()) {
    with_v6 = false;
    HEP_TRY(listen_at(socket_address(v4_mapped({htonl(INADDR_ANY)}), 0), listener));
  }
  *addresses = {v4_mapped({htonl(INADDR_LOOPBACK)})};
  add_interface_addresses(with_v6, addresses);
  return port_of(*listener, port);
}

}  // namespace hep
