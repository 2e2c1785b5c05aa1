// SPDX-License-Identifier: Apache-2.0
// The network of a communicator: a rank's way to the ranks of its number in the other domains. It
// owns transports and proxy. It exists only where there are several domains.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/status.h"
#include "network/proxy.h"
#include "network/transport.h"

namespace hep {

constexpr int kMaxNics = 4;  // of a rank

// What a rank tells all others. It is all-gathered as plain bytes.
struct NetworkAddress {
  char provider[32];
  int32_t num_nics;
  int32_t reserved;
  NicAddress nics[kMaxNics];
};

// Who asks for a network. Ranks of a domain have consecutive numbers.
struct NetworkPlace {
  int rank, domain_size, num_domains;

  int domain() const { return rank / domain_size; }
  int number() const { return rank % domain_size; }  // in the domain
  int rail_peer(int domain) const { return domain * domain_size + number(); }
};

// Created in these steps, after each of which all ranks agree: open, connect, start.
class Network {
 public:
  // Opens NICs of the provider that HEP_NETWORK and its kin ask for, and registers the sections.
  // hepErrorUnsupported: this build or this machine has no network.
  static Status open(const NetworkPlace& place, const std::vector<NetworkSection>& sections,
                     std::unique_ptr<Network>* out);

  // Stops the proxy and closes the NICs. Waits for no peer.
  ~Network();

  const NetworkAddress& address() const { return address_; }

  // Connects to the rail peers and writes to each of them over each NIC; returns when theirs have
  // come. `addresses` [ranks]. hepErrorMismatch: ranks differ in provider or number of NICs.
  // hepErrorNetwork: the sentence names the pairs of NICs that do not reach each other.
  Status connect(const std::vector<NetworkAddress>& addresses, Deadline deadline);

  // Starts the proxy. `plan` names domains and rail as this network does.
  Status start(ProxyPlan plan, ProxyListener& listener);

  Proxy& proxy() { return *proxy_; }  // after start

 private:
  NetworkPlace place_;
  NetworkAddress address_{};
  std::vector<std::unique_ptr<Transport>> transports_;  // one for each NIC
  std::unique_ptr<Proxy> proxy_;                        // goes first: it uses the transports
};

}  // namespace hep
