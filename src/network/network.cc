// SPDX-License-Identifier: Apache-2.0
#include "network/network.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "config/settings.h"
#include "network/fabric.h"
#include "network/greeting.h"
#include "network/simulated.h"

namespace hep {
namespace {

constexpr const char* kSimulated = "simulated";

// Of the time until the deadline, so that the ranks can still tell each other what they found.
constexpr int kShareOfDeadline = 2;

// The seed in "simulated" or "simulated:SEED".
Status read_seed(const std::string& name, uint64_t* seed) {
  const std::string text = name.substr(std::strlen(kSimulated));
  char* end = nullptr;
  *seed = text.empty() ? 0 : std::strtoull(text.c_str() + 1, &end, 10);
  if (text.empty() || (text[0] == ':' && end != text.c_str() + 1 && *end == '\0')) return Status();
  return error(hepErrorInvalidArgument,
               "HEP_NETWORK is \"%s\", but must be simulated:SEED with a number as seed",
               name.c_str());
}

std::string provider_of(const NetworkAddress& address) {
  return std::string(address.provider, ::strnlen(address.provider, sizeof address.provider));
}

}  // namespace

Status compare_networks(const std::vector<NetworkAddress>& addresses) {
  const NetworkAddress& first = addresses[0];
  for (size_t r = 1; r < addresses.size(); ++r) {
    const NetworkAddress& other = addresses[r];
    if (provider_of(other) != provider_of(first))
      return error(hepErrorMismatch,
                   "rank 0 and rank %zu have different networks (%s and %s): HEP_NETWORK can name "
                   "one that all have",
                   r, provider_of(first).c_str(), provider_of(other).c_str());
    if (other.num_nics != first.num_nics)
      return error(hepErrorMismatch,
                   "rank 0 and rank %zu have different numbers of NICs (%d and %d): "
                   "HEP_NETWORK_NICS can give one that all have",
                   r, first.num_nics, other.num_nics);
  }
  return Status();
}

Network::Network(NetworkPlace place) : place_(std::move(place)), process_(::getpid()) {}

// A forked child has neither the threads nor the connections: what it has of them is left alone.
Network::~Network() {
  if (process_ == ::getpid()) return;
  static_cast<void>(proxy_.release());
  for (std::unique_ptr<Transport>& nic : nics_) static_cast<void>(nic.release());
}

Status Network::open(NetworkPlace place, const std::vector<NetworkSection>& sections,
                     std::unique_ptr<Network>* out) {
  std::unique_ptr<Network> network(new Network(std::move(place)));
  HEP_TRY(setting_number("HEP_NETWORK_POLL_US", &network->poll_us_));
  HEP_TRY(network->open_nics(sections));
  network->address_.num_nics = static_cast<int32_t>(network->nics_.size());
  for (size_t nic = 0; nic < network->nics_.size(); ++nic)
    network->address_.nics[nic] = network->nics_[nic]->address();
  *out = std::move(network);
  return Status();
}

Status Network::open_nics(const std::vector<NetworkSection>& sections) {
  const std::string name = setting_text("HEP_NETWORK");
  if (name.compare(0, std::strlen(kSimulated), kSimulated) == 0)
    return open_simulated(name, sections);
  int64_t wanted = 0;
  HEP_TRY(setting_number("HEP_NETWORK_NICS", &wanted));
  std::string provider;
  HEP_TRY(open_fabric({name == "auto" ? "" : name,
                       setting_text("HEP_NETWORK_LIBRARY"),
                       setting_text("HEP_NETWORK_INTERFACE"),
                       {place_.device_paths, place_.number(), static_cast<int>(wanted)},
                       place_.num_domains},
                      sections, &provider, &nics_));
  std::snprintf(address_.provider, sizeof address_.provider, "%s", provider.c_str());
  return Status();
}

Status Network::open_simulated(const std::string& name,
                               const std::vector<NetworkSection>& sections) {
  uint64_t seed = 0;
  int64_t count = 0;
  HEP_TRY(read_seed(name, &seed));
  HEP_TRY(setting_number("HEP_NETWORK_NICS", &count));
  std::shared_ptr<SimulatedFabric> fabric;
  HEP_TRY(SimulatedFabric::of_process(seed, &fabric));
  for (int64_t nic = 0; nic < std::max<int64_t>(count, 1); ++nic)
    nics_.push_back(SimulatedFabric::open(fabric, sections));
  std::snprintf(address_.provider, sizeof address_.provider, "%s", name.c_str());
  return Status();
}

Status Network::connect(const std::vector<NetworkAddress>& addresses, Deadline deadline) {
  HEP_TRY(compare_networks(addresses));
  GreetingNames names;
  for (const NicAddress& nic : address_.nics) names.own.push_back(name_of(place_.rank, nic));
  for (int domain = 0; domain < place_.num_domains; ++domain) {
    const int peer = place_.rail_peer(domain);
    names.peers.emplace_back();
    for (size_t nic = 0; nic < nics_.size(); ++nic) {
      names.peers[domain].push_back(name_of(peer, addresses[peer].nics[nic]));
      if (peer != place_.rank) HEP_TRY(nics_[nic]->add_peer(domain, addresses[peer].nics[nic]));
    }
  }
  return greet(nics(), place_.domain(), names,
               deadline.or_in(deadline.left_ms() / kShareOfDeadline));
}

Status Network::start(ProxyPlan plan, ProxyListener& listener) {
  proxy_ = std::make_unique<Proxy>(nics(), std::move(plan), listener, static_cast<int>(poll_us_));
  return proxy_->start();
}

std::string Network::name_of(int rank, const NicAddress& nic) const {
  const std::string name(nic.nic, ::strnlen(nic.nic, sizeof nic.nic));
  return "NIC " + name + " of rank " + std::to_string(rank);
}

std::vector<Transport*> Network::nics() const {
  std::vector<Transport*> nics;
  for (const auto& nic : nics_) nics.push_back(nic.get());
  return nics;
}

}  // namespace hep
