// SPDX-License-Identifier: Apache-2.0
#include "net/listener.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <string>

#include "base/log.h"
#include "net/address.h"

namespace hep {
namespace {

Status open_socket(const in6_addr& at, Descriptor* out) {
  const SocketAddress address = socket_address(at, 0);
  Descriptor socket(::socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return system_error("no socket could be opened to listen for other ranks");
  if (address.family() == AF_INET6) {
    // IPv4 peers are served by the same socket.
    const int v6_only = 0;
    ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &v6_only, sizeof v6_only);
  }
  if (::bind(socket.get(), address.get(), address.length) != 0 ||
      ::listen(socket.get(), SOMAXCONN) != 0)
    return system_error("this machine cannot listen for other ranks at %s", address.text().c_str());
  *out = std::move(socket);
  return Status();
}

Status port_of(const Descriptor& socket, uint16_t* port) {
  SocketAddress address;
  if (::getsockname(socket.get(), address.get(), &address.length) != 0)
    return system_error("a listening socket does not know its port");
  // Both families have the port at the same offset.
  sockaddr_in v4;
  std::memcpy(&v4, &address.storage, sizeof v4);
  *port = ntohs(v4.sin_port);
  return Status();
}

// Adds addresses that other machines may reach: neither loopback nor link-local.
void add_interface_addresses(bool with_v6, std::vector<in6_addr>* addresses) {
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) {
    log_message(hepLogWarning,
                "the addresses of this machine could not be listed: %s; ranks on other machines "
                "cannot reach it",
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

void Listener::close() {
  if (socket.valid()) ::shutdown(socket.get(), SHUT_RDWR);
  socket.reset();
}

void warn_of_addresses_left_out(const std::vector<in6_addr>& addresses) {
  if (addresses.size() <= kMaxAddresses) return;
  std::string list;
  for (size_t i = kMaxAddresses; i < addresses.size(); ++i) {
    const std::string text = address_text(addresses[i], 0);
    list += (list.empty() ? "" : ", ") + text.substr(0, text.rfind(':'));
  }
  log_message(hepLogWarning,
              "the unique id has room for %zu addresses of this machine; these are left out: %s; "
              "HEP_RENDEZVOUS_ADDRESS can name the one to use",
              kMaxAddresses, list.c_str());
}

Status listen_at(const in6_addr& address, Listener* out) {
  HEP_TRY(open_socket(address, &out->socket));
  out->addresses = {address};
  return port_of(out->socket, &out->port);
}

Status listen_at_loopback(Listener* out) {
  return listen_at(v4_mapped({htonl(INADDR_LOOPBACK)}), out);
}

Status listen_everywhere(Listener* out) {
  const bool with_v6 = open_socket(in6addr_any, &out->socket).ok();
  if (!with_v6) HEP_TRY(open_socket(v4_mapped({htonl(INADDR_ANY)}), &out->socket));
  out->addresses = {v4_mapped({htonl(INADDR_LOOPBACK)})};
  add_interface_addresses(with_v6, &out->addresses);
  return port_of(out->socket, &out->port);
}

}  // namespace hep
