// SPDX-License-Identifier: Apache-2.0
// Passes file descriptors between the processes of one host: every process sends its own to all
// others over Unix sockets with names that only the kernel holds, and that vanish with their sockets.
// Where sockets do not reach (another network namespace), the descriptor is taken out of the other
// process by its number.
//
// Every process on the machine can find such a socket and connect. What comes from it counts only if
// the kernel confirms the sender's user and process, the message has the receiver's token, and the
// descriptor is the file that the sender announced; all of that is exchanged over the bootstrap.
#pragma once

#include <memory>
#include <vector>

#include "base/deadline.h"
#include "base/descriptor.h"
#include "base/status.h"
#include "memory/descriptor_address.h"
#include "memory/descriptor_exchange.h"

namespace hep {

class DescriptorChannel {
 public:
  // Listens from now on. `descriptor` is what will be offered; it stays the caller's and open.
  static Status open(int descriptor, std::unique_ptr<DescriptorChannel>* out);

  const DescriptorAddress& address() const { return address_; }

  // Gives the descriptor to the peers and receives theirs, as exchange_descriptors() says. Collective.
  Status exchange(int rank, const std::vector<int>& peers,
                  const std::vector<DescriptorAddress>& addresses,
                  const DescriptorReceiver& receive, Deadline deadline);

 private:
  DescriptorChannel() = default;

  Descriptor listener_;
  DescriptorAddress address_{};
};

}  // namespace hep
