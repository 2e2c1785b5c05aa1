// SPDX-License-Identifier: Apache-2.0
// Who is where: ranks stand in domains of consecutive ranks, equally many each. The ranks of a
// domain map each other's memory; a rank writes over the network to its rail peers alone, the ranks
// of its number in the other domains.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "protocol/host_device.h"

namespace hep {

constexpr int kMaxDomains = 64;

struct Topology {
  int num_ranks, domain_size;

  HEP_HOST_DEVICE constexpr int num_domains() const { return num_ranks / domain_size; }
  HEP_HOST_DEVICE constexpr int domain_of(int rank) const { return rank / domain_size; }
  HEP_HOST_DEVICE constexpr int number_of(int rank) const { return rank % domain_size; }
  HEP_HOST_DEVICE constexpr int rank_of(int domain, int number) const {
    return domain * domain_size + number;
  }
  HEP_HOST_DEVICE constexpr bool share_domain(int a, int b) const {
    return domain_of(a) == domain_of(b);
  }
};

// What is kept for each other domain has no room for the own one: which entry is another's.
HEP_HOST_DEVICE constexpr int index_of_domain(int other, int own) {
  return other < own ? other : other - 1;
}

// `name` is what the caller gave, for the error: "config field domain_size".
Status check_domain_size(const char* name, int domain_size, int num_ranks);

// The domains of ranks on these hosts [R]: all ranks if they share a host, otherwise the ranks of
// each host. These must be consecutive and equally many.
Status detect_domain_size(const std::vector<uint64_t>& hosts, int* domain_size);

}  // namespace hep
