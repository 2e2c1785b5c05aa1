// SPDX-License-Identifier: Apache-2.0
// Connects to a process that offers several addresses. Some of them may lead nowhere.
#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <vector>

#include "base/deadline.h"
#include "base/descriptor.h"
#include "base/status.h"
#include "net/siphash.h"

namespace hep {

struct Destination {
  std::vector<in6_addr> addresses;  // to be tried in this order
  uint16_t port;
  SipKey secret;  // both ends prove that they know it
};

// Tries the addresses in turn, again and again, until the process at one of them proves the secret.
// Tells it which rank comes, and by when that wants to have joined: at the deadline, or in
// `join_ms` if that is earlier. hepErrorTimeout gives the reason for each address. Every
// other error is this machine's own and comes at once.
Status reach(const Destination& destination, int rank, int num_ranks, Deadline deadline,
             Descriptor* out, int join_ms = INT32_MAX);

}  // namespace hep
