// SPDX-License-Identifier: Apache-2.0
// Passes file descriptors between the processes of one host. Every process sends its own to all
// others over Unix sockets. Their names are abstract: the kernel holds them, and they vanish with
// the sockets. If a socket does not reach the peer (another network namespace), the descriptor is
// copied out of the other process by its number.
//
// Every process on the machine can find such a socket and connect. A message counts only if the
// kernel confirms the sender's user and process, the message has the receiver's token, and the
// descriptor is the file that the sender announced. The bootstrap exchanges all of these
// beforehand.
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
  // Starts to listen. `descriptor` is the one to offer; the caller owns it and keeps it open.
  static Status open(int descriptor, std::unique_ptr<DescriptorChannel>* out);

  const DescriptorAddress& address() const { return address_; }

  // Gives the descriptor to the peers and receives theirs, as exchange_descriptors() says.
  // Collective.
  Status exchange(int rank, const std::vector<int>& peers,
                  const std::vector<DescriptorAddress>& addresses,
                  const DescriptorReceiver& receive, Deadline deadline);

 private:
  DescriptorChannel() = default;

  Descriptor listener_;
  DescriptorAddress address_{};
};

}  // namespace hep
