// SPDX-License-Identifier: Apache-2.0
// Memory of the caller's that ranks have registered: the ranges of this rank, and the mappings of
// its peers' ranges.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/deadline.h"
#include "base/descriptor.h"
#include "base/status.h"
#include "memory/descriptor_channel.h"
#include "memory/kind.h"

namespace hep {

// Tells others how to reach a range. It is all-gathered as plain bytes.
struct RegisteredHandle {
  uint64_t offset;      // of the memory in its allocation
  WindowHandle memory;  // the allocation; with 0 bytes the rank offers nothing
};
static_assert(std::is_trivially_copyable_v<RegisteredHandle>);

// One range of memory as peers reach it. One thread at a time may use it.
class RegisteredMemory {
 public:
  // Describes and exports `bytes` bytes at `pointer`. NULL with 0 bytes offers nothing. Local.
  static Status create(int device, const void* pointer, size_t bytes, bool several_hosts,
                       std::unique_ptr<RegisteredMemory>* out);
  ~RegisteredMemory();

  RegisteredHandle handle() const;

  // Maps the peers' ranges, as hep::map_peers() does. Collective; `handles` [R] are those of all
  // ranks.
  Status map_peers(const std::vector<RegisteredHandle>& handles, int rank, Deadline deadline,
                   std::vector<std::unique_ptr<Mapping>>* mappings);

  // Closes what only mapping needs. The caller must know that all ranks have mapped.
  void release_descriptors();

 private:
  explicit RegisteredMemory(int device) : device_(device) {}

  const int device_;
  uint64_t id_ = 0;
  DeviceRange range_{};
  size_t offset_ = 0;
  std::shared_ptr<Allocation> allocation_;  // NULL: none
  Descriptor placeholder_;                  // a rank without a descriptor exchanges this one
  std::unique_ptr<DescriptorChannel> channel_;
};

// The ranges that a rank has registered, each under a slot of its own, and its mappings of its
// peers' ranges.
class Registrations {
 public:
  // Finds a free slot for a range. NULL with 0 bytes is legal and has slot -1. Ranges must not
  // overlap.
  Status find_slot(const void* pointer, size_t bytes, int* slot) const;

  // `memory` tells how peers reach the range. It is NULL if they do not map it.
  void add(const void* pointer, size_t bytes, int slot,
           std::unique_ptr<RegisteredMemory> memory = nullptr);

  // Finds the slot of a range. Refuses a pointer at which no range begins. NULL is legal and has
  // slot -1.
  Status registration_of(const void* pointer, int* slot) const;

  void remove(const void* pointer) { ranges_.erase(reinterpret_cast<uintptr_t>(pointer)); }

  // Keeps this rank's mapping of a peer's range, by the peer's slot.
  void keep_mapping(int peer, int slot, std::unique_ptr<Mapping> mapping);
  void unmap(int peer, int slot) { mappings_.erase({peer, slot}); }

  // Finds the location of memory that lies in one range as a whole. Returns false if it does not.
  bool find_location(const void* begin, uint64_t bytes, uint64_t* location) const;

 private:
  struct Range {
    size_t bytes;
    int slot;
    std::unique_ptr<RegisteredMemory> memory;
  };
  std::map<uintptr_t, Range> ranges_;                                 // by beginning
  std::map<std::pair<int, int>, std::unique_ptr<Mapping>> mappings_;  // by peer and its slot
};

}  // namespace hep
