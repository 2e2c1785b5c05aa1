// SPDX-License-Identifier: Apache-2.0
#include "protocol/topology.h"

#include <algorithm>
#include <string>

namespace hep {
namespace {

// Where the run of ranks ends that share a host with the rank `begin`.
int end_of_host(const std::vector<uint64_t>& hosts, int begin) {
  const auto other = std::find_if(hosts.begin() + begin, hosts.end(),
                                  [&](uint64_t host) { return host != hosts[begin]; });
  return static_cast<int>(other - hosts.begin());
}

std::string ranks_text(int begin, int end) {
  if (end - begin == 1) return "rank " + std::to_string(begin);
  return "ranks " + std::to_string(begin) + " to " + std::to_string(end - 1);
}

}  // namespace

Status check_domain_size(const char* name, int domain_size, int num_ranks) {
  if (domain_size > num_ranks)
    return error(hepErrorInvalidArgument, "%s is %d, but must be at most num_ranks, %d", name,
                 domain_size, num_ranks);
  if (num_ranks % domain_size != 0)
    return error(hepErrorInvalidArgument, "%s is %d, but must divide num_ranks, %d", name,
                 domain_size, num_ranks);
  if (num_ranks / domain_size > kMaxDomains)
    return error(hepErrorInvalidArgument,
                 "%s is %d, which makes %d domains of %d ranks, but there may be at most %d", name,
                 domain_size, num_ranks / domain_size, num_ranks, kMaxDomains);
  return Status();
}

Status detect_domain_size(const std::vector<uint64_t>& hosts, int* domain_size) {
  const int num_ranks = static_cast<int>(hosts.size());
  const int size = end_of_host(hosts, 0);
  for (int begin = 0; begin < num_ranks;) {
    const int end = end_of_host(hosts, begin);
    const auto earlier = std::find(hosts.begin(), hosts.begin() + begin, hosts[begin]);
    if (earlier != hosts.begin() + begin)
      return error(hepErrorInvalidArgument,
                   "rank %d runs on the host of rank %d, but ranks between them run elsewhere: the "
                   "ranks of a host must be consecutive, or domain_size must be given",
                   begin, static_cast<int>(earlier - hosts.begin()));
    if (end - begin != size)
      return error(hepErrorInvalidArgument,
                   "the host of rank 0 has %d ranks, but that of rank %d has %d (%s): all hosts "
                   "must have equally many, or domain_size must be given",
                   size, begin, end - begin, ranks_text(begin, end).c_str());
    begin = end;
  }
  *domain_size = size;
  return check_domain_size("the number of ranks of a host", size, num_ranks);
}

}  // namespace hep
