// SPDX-License-Identifier: Apache-2.0
// Connections between the processes of a communicator, one for each pair. That one ends is how a
// process learns that another is gone, whichever of them it is.
#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "bootstrap/unique_id.h"
#include "deadline.h"
#include "descriptor.h"
#include "net/frames.h"
#include "net/siphash.h"
#include "status.h"

namespace hep {

// How the others reach a process. Plain bytes, to be all-gathered.
struct LinkAddress {
  in6_addr addresses[Rendezvous::kMaxAddresses];
  uint16_t num_addresses;
  uint16_t port;
  uint32_t reserved;
  uint64_t host;  // host_identity()
  SipKey secret;  // what both ends of a connection to this process prove that they know
};

// Process i of a communicator, counted in the order of their lowest ranks.
class Links {
 public:
  // Listens from now on.
  Status open();

  const LinkAddress& address() const { return address_; }

  // Collective among the processes: connects each to every other. `names` [processes] says in errors
  // who they are. Strangers that connect are ignored.
  Status connect(const std::vector<LinkAddress>& addresses, int process,
                 const std::vector<std::string>& names, Deadline deadline);

  // [processes], without this one's own.
  std::vector<Descriptor>& sockets() { return sockets_; }

 private:
  // A connection that has been challenged and has proved nothing yet.
  struct Stranger {
    Descriptor socket;
    wire::Nonce nonce;
  };

  Status accept_stranger(std::deque<Stranger>* strangers);
  void admit(Stranger stranger, int process, Deadline deadline);
  Status accept_others(int process, const std::vector<std::string>& names, Deadline deadline);

  Descriptor listener_;
  LinkAddress address_{};
  std::vector<Descriptor> sockets_;
};

}  // namespace hep
