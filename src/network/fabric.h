// SPDX-License-Identifier: Apache-2.0
// Transports over libfabric.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "network/nic.h"
#include "network/transport.h"

namespace hep {

struct FabricRequest {
  std::string provider;    // as libfabric names it; "": the first that can do what is needed
  std::string library;     // file; "": libfabric.so.1
  std::string interfaces;  // as names_for() takes it; "": by PCI paths
  NicSeeker seeker;
  int num_domains;
};

// Opens the NICs of a rank, and registers the sections with each of them. hepErrorUnsupported: the
// library was built without libfabric, it is not on this machine, or it has no such provider.
Status open_fabric(const FabricRequest& request, const std::vector<NetworkSection>& sections,
                   std::string* provider, std::vector<std::unique_ptr<Transport>>* nics);

}  // namespace hep
