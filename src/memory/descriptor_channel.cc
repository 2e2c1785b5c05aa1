// SPDX-License-Identifier: Apache-2.0
#include "memory/descriptor_channel.h"

namespace hep {

Status DescriptorChannel::open(int descriptor, std::unique_ptr<DescriptorChannel>* out) {
  std::unique_ptr<DescriptorChannel> channel(new DescriptorChannel);
  HEP_TRY(offer_descriptor(descriptor, &channel->address_, &channel->listener_));
  *out = std::move(channel);
  return Status();
}

Status DescriptorChannel::exchange(int rank, const std::vector<int>& peers,
                                   const std::vector<DescriptorAddress>& addresses,
                                   const DescriptorReceiver& receive, Deadline deadline) {
  return exchange_descriptors(listener_, address_, rank, peers, addresses, receive, deadline);
}

}  // namespace hep
