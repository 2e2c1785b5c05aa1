// SPDX-License-Identifier: Apache-2.0
// Links connect the processes of a communicator, with one connection for each pair. A process
// learns by the end of a connection that the other process is gone.
#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/descriptor.h"
#include "base/status.h"
#include "net/address.h"
#include "net/listener.h"
#include "net/siphash.h"

namespace hep {

// Tells the others how to reach a process. It is all-gathered as plain bytes.
struct LinkAddress {
  in6_addr addresses[kMaxAddresses];
  uint16_t num_addresses;
  uint16_t port;
  uint32_t reserved;
  uint64_t host;  // host_identity()
  SipKey secret;  // both ends of a connection to this process prove that they know it
};

// Processes are numbered in the order of their lowest ranks.
class Links {
 public:
  // Listens from now on.
  Status open();

  const LinkAddress& address() const { return address_; }

  // Collective among the processes: connects each to every other. `names` [processes] says in
  // errors who they are. Strangers that connect are ignored.
  Status connect(const std::vector<LinkAddress>& addresses, int process,
                 const std::vector<std::string>& names, Deadline deadline);

  // [processes], without this one's own.
  std::vector<Descriptor>& sockets() { return sockets_; }

 private:
  Status accept_others(int process, const std::vector<std::string>& names, Deadline deadline);

  Listener listener_;
  LinkAddress address_{};
  std::vector<Descriptor> sockets_;
};

}  // namespace hep
