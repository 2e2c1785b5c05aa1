// SPDX-License-Identifier: Apache-2.0
// What travels over a link between two processes.
#pragma once

#include <cstdint>

#include "peers/group.h"

namespace hep {

constexpr uint32_t kMessageMagic = 0x4845504d;

// A rank sends that it has failed, and that it has left, once; of contributions it has two under way at
// most, because the next has to wait for those of all others.
struct PeerMessage {
  uint32_t magic;
  PeerEvent event;
  int32_t rank;
  int32_t result;
  int32_t missing_rank;
  uint32_t length;  // of the content
  uint64_t round;   // of a contribution
  char content[PeerGroup::kMaxGatherBytes];
};
static_assert(sizeof(PeerMessage) == 1024);

}  // namespace hep
