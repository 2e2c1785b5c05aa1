// SPDX-License-Identifier: Apache-2.0
// What the backend and the proxy share in memory: the ring of descriptors, the inbox, and the
// immediate that travels with each write. For host and device.
//
// A stream is all writes of one kind on one lane from one domain to another. Its writes are
// numbered from 0, in the order of their descriptors. The network may reorder them; whoever counts
// them counts the consecutive ones.
#pragma once

#include <cstdint>

#include "protocol/host_device.h"

namespace hep {

enum class WriteKind : uint32_t { kRecords, kRows, kParts, kCall, kCredit, kHello };

constexpr int kWriteKinds = 8;  // that an immediate tells apart
constexpr int kMaxNetworkDomains = 64;
constexpr int kMaxNetworkLanes = 8;

// Writes of a stream that may be under way at the same time. The receiver tells them apart by the
// low 8 bits of their number.
constexpr int kMaxInFlight = 128;

// ----------------------------------------------------------------------------------------
// immediate

// Bits 2-0 kind, 5-3 lane, 15-6 domain, 23-16 number, 31-24 zero.
struct Immediate {
  WriteKind kind;
  uint32_t lane;
  uint32_t domain;  // of the source
  uint32_t number;  // of the write in its stream, modulo 256

  HEP_HOST_DEVICE constexpr uint32_t pack() const {
    return static_cast<uint32_t>(kind) | lane << 3 | domain << 6 | (number & 0xff) << 16;
  }
  HEP_HOST_DEVICE static constexpr Immediate unpack(uint32_t bits) {
    return {static_cast<WriteKind>(bits & 7), bits >> 3 & 7, bits >> 6 & 0x3ff, bits >> 16 & 0xff};
  }
};

// ---------------------------------------------------------------------------------------
// descriptor

// A write that the proxy is to make. It holds no address: Channel turns it into two offsets.
struct WriteDescriptor {
  WriteKind kind;
  uint32_t domain;  // of the destination
  uint32_t slot;    // from which it is taken, less than 2^16
  uint32_t target;  // to which it goes, less than 2^24
  uint32_t bytes;   // a multiple of 16, less than 2^28; 0: only the immediate goes
};

// Word 0: bits 63-32 tag, 31-29 zero, 28-26 kind, 25-16 domain, 15-0 slot. Word 1: bits 63-48 tag,
// 47-24 bytes / 16, 23-0 target. The tag is the position in the sequence of descriptors plus 1.
// Each word has it, so the two words may become visible one after the other. The tag of a word
// differs from that of the lap before, and zeroed memory never matches in the first lap.
struct alignas(16) PackedDescriptor {
  uint64_t words[2];
};

// A ring of descriptors: one for each lane. Producers claim positions 0, 1, 2, ... and store there.
// The proxy takes them in order. No producer asks for room: the streams of a lane are bounded, and
// the ring holds all that may be under way.
constexpr uint32_t kMaxRingSlots = 1 << 15;

HEP_HOST_DEVICE constexpr PackedDescriptor pack(const WriteDescriptor& write, uint64_t position) {
  const uint64_t tag = position + 1;
  const uint64_t place =
      static_cast<uint64_t>(write.kind) << 26 | uint64_t{write.domain} << 16 | write.slot;
  return {{tag << 32 | place, tag << 48 | uint64_t{write.bytes} / 16 << 24 | write.target}};
}

// Whether the words are the descriptor of this position, and not of the lap before.
HEP_HOST_DEVICE constexpr bool is_at(const PackedDescriptor& packed, uint64_t position) {
  const uint64_t tag = position + 1;
  return packed.words[0] >> 32 == (tag & 0xffffffff) && packed.words[1] >> 48 == (tag & 0xffff);
}

HEP_HOST_DEVICE constexpr WriteDescriptor unpack(const PackedDescriptor& packed) {
  const uint64_t place = packed.words[0], size = packed.words[1];
  return {static_cast<WriteKind>(place >> 26 & 7), static_cast<uint32_t>(place >> 16 & 0x3ff),
          static_cast<uint32_t>(place & 0xffff), static_cast<uint32_t>(size & 0xffffff),
          static_cast<uint32_t>(size >> 24 & 0xffffff) * 16};
}

// Slots of a ring whose lane has so many writes under way at most: a power of two.
constexpr uint32_t ring_slots(uint32_t writes) {
  uint32_t slots = 1;
  while (slots < writes) slots *= 2;
  return slots;
}

// --------------------------------------------------------------------------------------------
// inbox

// What the proxy tells of the streams of one lane between this rank and one domain. The proxy alone
// writes it, with release; readers load with acquire. The counts only grow.
struct alignas(128) Inbox {
  uint64_t arrived[kWriteKinds];    // consecutive writes from the domain; their data is visible
  uint64_t completed[kWriteKinds];  // consecutive own writes to it; their slots may be overwritten

  HEP_HOST_DEVICE const uint64_t* arrived_of(WriteKind kind) const {
    return &arrived[static_cast<int>(kind)];
  }
  HEP_HOST_DEVICE const uint64_t* completed_of(WriteKind kind) const {
    return &completed[static_cast<int>(kind)];
  }
};

// ------------------------------------------------------------------------------------------
// channel

// Where the writes of a kind on a lane come from and go to, as offsets from where the registered
// memory begins. All ranks have the same layout. Memory of the other domains stands one after the
// other, without a place for the own one.
//
//   from + (index of the destination) * from_domain + slot * from_slot   in the own memory
//   to + (index of the source there) * to_domain + target * to_unit      in the peer's memory
struct Channel {
  uint64_t from, from_domain, from_slot;
  uint64_t to, to_domain, to_unit;
  uint32_t slots;    // that a descriptor may name; 0: the lane has no writes with data of this kind
  uint32_t targets;  // that a descriptor may name
  uint64_t max_bytes;  // of a write

  HEP_HOST_DEVICE constexpr uint64_t source_of(const WriteDescriptor& write, uint32_t own) const {
    return from + index_among_others(write.domain, own) * from_domain + write.slot * from_slot;
  }
  HEP_HOST_DEVICE constexpr uint64_t destination_of(const WriteDescriptor& write,
                                                    uint32_t own) const {
    return to + index_among_others(own, write.domain) * to_domain + write.target * to_unit;
  }
  // Whether the write stays in its channel. One without data is nowhere.
  HEP_HOST_DEVICE constexpr bool holds(const WriteDescriptor& write) const {
    return write.bytes == 0 ||
           (write.slot < slots && write.target < targets && write.bytes <= max_bytes);
  }

 private:
  HEP_HOST_DEVICE static constexpr uint32_t index_among_others(uint32_t domain, uint32_t own) {
    return domain < own ? domain : domain - 1;
  }
};

}  // namespace hep
