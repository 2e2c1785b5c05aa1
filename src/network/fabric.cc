// SPDX-License-Identifier: Apache-2.0
#include "network/fabric.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/log.h"
#include "network/fabric_library.h"
#include "network/fabric_transport.h"

namespace hep {
namespace {

// In the order of preference. Those over TCP cost a copy on each side, and the time of a core.
constexpr const char* kProviders[] = {"efa", "verbs;ofi_rxm", "tcp", "net", "tcp;ofi_rxm"};
constexpr const char* kProvidersOverTcp[] = {"tcp", "net", "tcp;ofi_rxm", "net;ofi_rxm", "sockets"};

bool is_over_tcp(const std::string& provider) {
  return std::find(std::begin(kProvidersOverTcp), std::end(kProvidersOverTcp), provider) !=
         std::end(kProvidersOverTcp);
}

// A NIC that would do.
struct Candidate {
  const fi_info* info;
  std::string name, path;
};

// What all that follows relies on. Delivery is complete when the data is in the peer's memory, so
// that a rank may leave.
FabricInfo make_hints(const FabricLibrary& library, const char* provider, bool device_memory) {
  FabricInfo hints = library.make_info();
  hints->caps = FI_RMA | FI_WRITE | FI_REMOTE_WRITE;
  hints->mode = FI_CONTEXT | FI_CONTEXT2;
  hints->ep_attr->type = FI_EP_RDM;
  hints->tx_attr->op_flags = FI_COMPLETION | FI_DELIVERY_COMPLETE;
  hints->domain_attr->threading = FI_THREAD_DOMAIN;
  hints->domain_attr->av_type = FI_AV_TABLE;
  hints->domain_attr->resource_mgmt = FI_RM_ENABLED;
  hints->domain_attr->cq_data_size = sizeof(uint32_t);
  hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
  hints->fabric_attr->prov_name = ::strdup(provider);
  if (device_memory) {
    hints->caps |= FI_HMEM;
    hints->domain_attr->mr_mode |= FI_MR_HMEM;
  }
  return hints;
}

bool has_provider(const fi_info* list, const std::string& provider) {
  for (const fi_info* info = list; info != nullptr; info = info->next)
    if (provider == info->fabric_attr->prov_name) return true;
  return false;
}

// The wanted provider, or one that is built upon it: tcp of libfabric 1.17 serves as tcp;ofi_rxm.
Status find_wanted(const FabricLibrary& library, const std::string& wanted, bool device_memory,
                   FabricInfo* list, std::string* provider) {
  HEP_TRY(library.find(*make_hints(library, wanted.c_str(), device_memory), list));
  if (!*list)
    return error(hepErrorUnsupported,
                 "%s has no provider %s that serves here: reliable datagrams, remote writes with "
                 "4 bytes of data%s",
                 library.name().c_str(), wanted.c_str(), device_memory ? ", device memory" : "");
  *provider = has_provider(list->get(), wanted) ? wanted : (*list)->fabric_attr->prov_name;
  return Status();
}

Status find_best(const FabricLibrary& library, bool device_memory, FabricInfo* list,
                 std::string* provider) {
  for (const char* known : kProviders) {
    HEP_TRY(library.find(*make_hints(library, known, device_memory), list));
    if (!has_provider(list->get(), known)) continue;
    *provider = known;
    if (is_over_tcp(known))
      log_message(hepLogWarning,
                  "the network between domains is TCP (provider %s of %s): no NIC with remote "
                  "writes was found",
                  known, library.name().c_str());
    return Status();
  }
  return error(hepErrorUnsupported,
               "%s has no provider that serves here: efa, verbs;ofi_rxm, tcp, net or tcp;ofi_rxm",
               library.name().c_str());
}

std::string real_path(const std::string& path) {
  char resolved[PATH_MAX];
  return ::realpath(path.c_str(), resolved) != nullptr ? resolved : "";
}

// The folder of a NIC below /sys/devices; empty if it has none.
std::string device_path(const fi_info& info) {
  if (info.nic != nullptr && info.nic->bus_attr != nullptr &&
      info.nic->bus_attr->bus_type == FI_BUS_PCI) {
    const fi_pci_attr& pci = info.nic->bus_attr->attr.pci;
    char name[32];
    std::snprintf(name, sizeof name, "%04x:%02x:%02x.%x", pci.domain_id, pci.bus_id, pci.device_id,
                  pci.function_id);
    return real_path(std::string("/sys/bus/pci/devices/") + name);
  }
  return real_path(std::string("/sys/class/net/") + info.domain_attr->name + "/device");
}

// How well others reach an address: the less the better. A link-local one needs an interface beside
// it.
int farness(const fi_info& info) {
  const auto* const address = static_cast<const sockaddr*>(info.src_addr);
  if (address == nullptr || address->sa_family != AF_INET6) return 0;
  const auto* const ipv6 = reinterpret_cast<const sockaddr_in6*>(address);
  return IN6_IS_ADDR_LINKLOCAL(&ipv6->sin6_addr) ? 2 : 1;
}

// The NICs of a list, each with its best address. A provider may come in several forms, of which
// the first counts.
std::vector<Candidate> find_candidates(const fi_info& list, const std::string& provider) {
  std::vector<Candidate> candidates;
  for (const fi_info* info = &list; info != nullptr; info = info->next) {
    if (provider != info->fabric_attr->prov_name) continue;
    const std::string name = info->domain_attr->name;
    const auto known = std::find_if(candidates.begin(), candidates.end(),
                                    [&](const Candidate& other) { return other.name == name; });
    if (known == candidates.end())
      candidates.push_back({info, name, device_path(*info)});
    else if (farness(*info) < farness(*known->info))
      known->info = info;
  }
  return candidates;
}

Status choose_named(const std::vector<Candidate>& candidates, const std::vector<std::string>& names,
                    std::vector<Candidate>* chosen) {
  if (names.size() > kMaxNics)
    return error(hepErrorInvalidArgument,
                 "HEP_NETWORK_INTERFACE names %zu NICs for a rank, but must name at most %d",
                 names.size(), kMaxNics);
  for (const std::string& name : names) {
    const auto found = std::find_if(candidates.begin(), candidates.end(),
                                    [&](const Candidate& nic) { return nic.name == name; });
    if (found != candidates.end()) {
      chosen->push_back(*found);
      continue;
    }
    std::string known;
    for (const Candidate& nic : candidates) known += (known.empty() ? "" : ", ") + nic.name;
    return error(hepErrorInvalidArgument,
                 "HEP_NETWORK_INTERFACE names %s, but the provider has only %s", name.c_str(),
                 known.c_str());
  }
  return Status();
}

// Of interfaces that TCP uses, the first that leads to other machines: the library lists them by
// speed.
std::vector<Candidate> choose_interface(const std::vector<Candidate>& candidates) {
  for (const Candidate& nic : candidates)
    if (nic.name != "lo") return {nic};
  return {candidates[0]};
}

Status choose(const FabricRequest& request, const fi_info& list, const std::string& provider,
              std::vector<Candidate>* chosen) {
  const std::vector<Candidate> candidates = find_candidates(list, provider);
  const std::vector<std::string> names = names_for(request.interfaces, request.seeker.number);
  if (!names.empty()) return choose_named(candidates, names, chosen);
  if (is_over_tcp(provider)) {
    *chosen = choose_interface(candidates);
    return Status();
  }
  std::vector<std::string> paths;
  for (const Candidate& nic : candidates) paths.push_back(nic.path);
  for (const int index : choose_nics(paths, request.seeker)) chosen->push_back(candidates[index]);
  return Status();
}

}  // namespace

Status open_fabric(const FabricRequest& request, const std::vector<NetworkSection>& sections,
                   std::string* provider, std::vector<std::unique_ptr<Transport>>* nics) {
  const FabricLibrary* library = nullptr;
  HEP_TRY(FabricLibrary::open(request.library, &library));
  const bool device_memory =
      std::any_of(sections.begin(), sections.end(),
                  [](const NetworkSection& section) { return section.device >= 0; });
  FabricInfo list;
  HEP_TRY(request.provider.empty()
              ? find_best(*library, device_memory, &list, provider)
              : find_wanted(*library, request.provider, device_memory, &list, provider));
  std::vector<Candidate> chosen;
  HEP_TRY(choose(request, *list, *provider, &chosen));
  for (const Candidate& nic : chosen) {
    nics->emplace_back();
    HEP_TRY(
        FabricTransport::open(*library, *nic.info, request.num_domains, sections, &nics->back()));
    log_message(hepLogInfo, "NIC %s of provider %s is used", nic.name.c_str(), provider->c_str());
  }
  return Status();
}

}  // namespace hep
