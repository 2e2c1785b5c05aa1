// SPDX-License-Identifier: Apache-2.0
// Messages travel over a link between two processes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hep {

constexpr uint32_t kMessageMagic = 0x4845504d;

enum class PeerEvent : uint32_t { kLeft = 1, kFailed = 2, kContributed = 3 };

// A rank sends once that it has failed, and once that it has left. Of contributions it has at most
// two under way, because the next one has to wait for those of all others.
struct PeerMessage {
  static constexpr size_t kMaxBytes = 992;

  uint32_t magic;
  PeerEvent event;
  int32_t rank;
  int32_t result;        // of a failure
  int32_t missing_rank;  // of a failure; -1: none
  uint32_t length;       // of the content
  uint64_t round;        // of a contribution
  char content[kMaxBytes];
};
static_assert(sizeof(PeerMessage) == 1024);

}  // namespace hep
