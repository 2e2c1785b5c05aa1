// SPDX-License-Identifier: Apache-2.0
// A transport writes memory of this rank into registered memory of other ranks, over one NIC. Each
// write carries 32 bits that the other side receives when the data has landed. Nothing else is
// asked of a network: no order between writes, no atomics, no reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/status.h"
#include "network/descriptor.h"

namespace hep {

// A part of the memory of a rank that its peers write to, and that it writes from. Offsets count
// from a place that is common to all sections; a write lies in one section on each side.
struct NetworkSection {
  void* address;
  uint64_t offset;
  uint64_t bytes;
  int device = -1;  // CUDA ordinal of device memory; -1: host memory
};

constexpr int kMaxNetworkSections = 8;

// What a peer must know to write here over one NIC. It is all-gathered as plain bytes.
struct NicAddress {
  static constexpr size_t kMaxBytes = 128;

  struct Section {
    uint64_t offset, bytes;
    uint64_t address, key;  // of the transport
  };

  char nic[64];  // its name, for errors
  uint32_t num_bytes;
  uint32_t num_sections;
  char bytes[kMaxBytes];
  Section sections[kMaxNetworkSections];
};

// A write of `bytes` bytes, which may be 0: then only the immediate goes.
struct NetworkWrite {
  int peer;  // a domain
  uint64_t from, to;
  uint64_t bytes;
  uint32_t immediate;
  uint32_t tag;  // peer * kTagsOfAPeer + one that no other write under way to the peer has
};

struct NetworkEvent {
  enum class Kind {
    kCompleted,  // the write `tag` is in the peer's memory, and its source may be overwritten
    kFailed,     // the write `tag` will not arrive; `code` says why
    kArrived,    // a write with `immediate` has landed in this rank's memory
    kBroken      // the transport is of no use any more; `code` says why
  };

  Kind kind;
  uint32_t tag;
  uint32_t immediate;
  int code;
};

// Each peer has a range of the tags, so that one which answers nothing leaves the others theirs.
constexpr uint32_t kTagsOfAPeer = 64;
constexpr uint32_t kHelloTag = 62;  // of a peer: this one and the last are for the creation
constexpr uint32_t kMaxWrites = kTagsOfAPeer * kMaxNetworkDomains;  // under way at the same time

// One thread at a time uses a transport. Its creation is the implementation's own.
class Transport {
 public:
  enum class Outcome { kTaken, kBusy, kFailed };

  virtual ~Transport() = default;

  // Where peers reach this rank.
  virtual const NicAddress& address() const = 0;

  // Learns where a peer is. Needs no answer of it.
  virtual Status add_peer(int peer, const NicAddress& address) = 0;

  // Begins a write. kBusy: it did not begin, and can be tried again after a poll. kFailed: it will
  // never begin, and *code says why.
  virtual Outcome write(const NetworkWrite& write, int* code) = 0;

  // Makes progress; fills at most `max` events and returns their number. An event of an arrival
  // comes before that of the completion at the writer, as far as the two can be compared.
  virtual int poll(NetworkEvent* events, int max) = 0;

  // A code of an event in words.
  virtual std::string text_of(int code) const = 0;
};

}  // namespace hep
