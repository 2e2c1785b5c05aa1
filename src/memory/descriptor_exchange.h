// SPDX-License-Identifier: Apache-2.0
// The exchange in which every process of a group gives its file descriptor to all others.
#pragma once

#include <functional>
#include <vector>

#include "base/deadline.h"
#include "base/descriptor.h"
#include "base/status.h"
#include "memory/descriptor_address.h"

namespace hep {

// Takes an arrived descriptor, which is lent for the duration of the call.
using DescriptorReceiver = std::function<void(int rank, int descriptor)>;

// Collective among this rank and those of `peers`. Gives this rank's descriptor to each peer, and
// each peer's to `receive`, one at a time, in the order of arrival. `addresses` has those of all
// ranks; `own` is this rank's, at which `listener` listens. After a failure of one peer it goes on,
// so that the others get what they wait for, and returns the first failure. hepErrorTimeout names
// the peers that sent nothing.
Status exchange_descriptors(const Descriptor& listener, const DescriptorAddress& own, int rank,
                            const std::vector<int>& peers,
                            const std::vector<DescriptorAddress>& addresses,
                            const DescriptorReceiver& receive, Deadline deadline);

}  // namespace hep
