// SPDX-License-Identifier: Apache-2.0
// The network of a communicator: a rank's way to the ranks of its number in the other domains. It
// owns transports and proxy. It exists only where there are several domains.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/status.h"
#include "network/nic.h"
#include "network/proxy.h"
#include "network/transport.h"

namespace hep {

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
  std::vector<std::string> device_paths;  // as in NicSeeker; empty on the host backend

  int domain() const { return rank / domain_size; }
  int number() const { return rank % domain_size; }  // in the domain
  int rail_peer(int domain) const { return domain * domain_size + number(); }
};

// Says in which way the networks of two ranks do not fit together. hepErrorMismatch names the
// ranks.
Status compare_networks(const std::vector<NetworkAddress>& addresses);

// Created in these steps, after each of which all ranks agree: open, connect, start.
class Network {
 public:
  // Opens NICs of the provider that HEP_NETWORK and its kin ask for, and registers the sections.
  // hepErrorUnsupported: this build or this machine has no such network.
  static Status open(NetworkPlace place, const std::vector<NetworkSection>& sections,
                     std::unique_ptr<Network>* out);

  // Stops the proxy and closes the NICs. Waits for no peer.
  ~Network();

  const NetworkAddress& address() const { return address_; }

  // Collective: connects to the rail peers and exchanges a write with each over each NIC.
  // `addresses` [ranks]. hepErrorMismatch: ranks differ in provider or number of NICs.
  // hepErrorNetwork: the sentence names the pairs of NICs that do not reach each other.
  Status connect(const std::vector<NetworkAddress>& addresses, Deadline deadline);

  // Starts the proxy. `plan` names domains and rail as this network does.
  Status start(ProxyPlan plan, ProxyListener& listener);

  Proxy& proxy() { return *proxy_; }  // after start

 private:
  explicit Network(NetworkPlace place);

  Status open_nics(const std::vector<NetworkSection>& sections);
  Status open_simulated(const std::string& name, const std::vector<NetworkSection>& sections);
  std::string name_of(int rank, const NicAddress& nic) const;
  std::vector<Transport*> nics() const;

  const NetworkPlace place_;
  const pid_t process_;
  int64_t poll_us_ = 0;
  NetworkAddress address_{};
  std::vector<std::unique_ptr<Transport>> nics_;
  std::unique_ptr<Proxy> proxy_;  // goes first: it uses the NICs
};

}  // namespace hep
