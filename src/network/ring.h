// SPDX-License-Identifier: Apache-2.0
// The ring of descriptors as the host sees it.
#pragma once

#include <cstdint>

#include "network/descriptor.h"

namespace hep {

// The producer of a lane on the host. One thread at a time uses it.
class RingWriter {
 public:
  RingWriter(PackedDescriptor* ring, uint32_t slots) : ring_(ring), mask_(slots - 1) {}

  // What the thread wrote before is visible to the proxy that takes the descriptor.
  void push(const WriteDescriptor& write) {
    const PackedDescriptor packed = pack(write, position_);
    PackedDescriptor& place = ring_[position_ & mask_];
    for (int i = 0; i < 2; ++i)
      __atomic_store_n(&place.words[i], packed.words[i], __ATOMIC_RELEASE);
    ++position_;
  }

 private:
  PackedDescriptor* ring_;
  uint64_t mask_;
  uint64_t position_ = 0;
};

// The proxy's end.
class RingReader {
 public:
  RingReader(const PackedDescriptor* ring, uint32_t slots) : ring_(ring), mask_(slots - 1) {}

  // Takes the next descriptor, if it is there.
  bool take(WriteDescriptor* write) {
    const PackedDescriptor& place = ring_[position_ & mask_];
    PackedDescriptor packed{};
    for (int i = 0; i < 2; ++i)
      packed.words[i] = __atomic_load_n(&place.words[i], __ATOMIC_ACQUIRE);
    if (!is_at(packed, position_)) return false;
    *write = unpack(packed);
    ++position_;
    return true;
  }

 private:
  const PackedDescriptor* ring_;
  uint64_t mask_;
  uint64_t position_ = 0;
};

}  // namespace hep
