// SPDX-License-Identifier: Apache-2.0
// The streams of a lane as the proxy sees them: where each kind of write comes from and goes to.
#pragma once

#include <cstdint>

#include "config/lanes.h"
#include "network/descriptor.h"

namespace hep {

static_assert(sizeof(Inbox) == kInboxBytes && kMaxNetworkSlots <= kMaxInFlight);

// Fills [kWriteKinds] for a lane; offsets count from the beginning of a window.
//
//   kRecords, kCall   slot and target are the parity of the operation
//   kRows             slot and target are the slot of the ring
//   kParts            slot is that of the ring, target the row of the pool
//   kCredit           has no bytes
void fill_channels(const Lane& lane, Channel* channels);

// Descriptors that a lane may have under way, as a power of two.
uint32_t descriptor_slots(const NetworkLayout& layout);

}  // namespace hep
