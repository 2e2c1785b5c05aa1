// SPDX-License-Identifier: Apache-2.0
// Every process of a group gives its file descriptor to all others.
#pragma once

#include <functional>
#include <vector>

#include "base/deadline.h"
#include "base/descriptor.h"
#include "base/status.h"
#include "memory/descriptor_address.h"

namespace hep {

// What arrives: lent for the duration of the call.
using DescriptorReceiver = std::function<void(int rank, int descriptor)>;

// Collective among the ranks of `peers`, and this one: gives this rank's descriptor to each peer and
// hands each peer's to `receive`, one at a time, in the order of arrival. `addresses` has those of all
// ranks; `own` is this rank's, at which `listener` listens. Goes on after a failure of one peer, so
// that the others get what they wait for, and returns the first. hepErrorTimeout names the peers that
// sent nothing.
Status exchange_descriptors(const Descriptor& listener, const DescriptorAddress& own, int rank,
                            const std::vector<int>& peers,
                            const std::vector<DescriptorAddress>& addresses,
                            const DescriptorReceiver& receive, Deadline deadline);

}  // namespace hep
