// SPDX-License-Identifier: Apache-2.0
// Memory of the caller's that ranks have registered: what this rank offers, and what it has mapped
// of its peers.
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

// How others reach it: plain bytes, to be all-gathered.
struct RegisteredHandle {
  uint64_t offset;      // of the memory in its allocation
  WindowHandle memory;  // the allocation; with 0 bytes the rank offers nothing
};
static_assert(std::is_trivially_copyable_v<RegisteredHandle>);

// One range of memory as peers reach it. Used by one thread at a time.
class RegisteredMemory {
 public:
  // Describes and exports `bytes` bytes at `pointer`; NULL and 0 offer nothing. Local.
  static Status create(int device, const void* pointer, size_t bytes, bool several_hosts,
                       std::unique_ptr<RegisteredMemory>* out);
  ~RegisteredMemory();

  RegisteredHandle handle() const;

  // Maps what the peers offer, as hep::map_peers() does. Collective; `handles` [R] are those of all
  // ranks.
  Status map_peers(const std::vector<RegisteredHandle>& handles, int rank, Deadline deadline,
                   std::vector<std::unique_ptr<Mapping>>* mappings);

  // Closes what was needed for mapping. The caller has made sure that all ranks have mapped.
  void release_descriptors();

 private:
  explicit RegisteredMemory(int device) : device_(device) {}

  const int device_;
  uint64_t id_ = 0;
  DeviceRange range_{};
  size_t offset_ = 0;
  std::shared_ptr<Allocation> allocation_;  // NULL: none
  Descriptor placeholder_;                  // what is exchanged by a rank that has no descriptor
  std::unique_ptr<DescriptorChannel> channel_;
};

// What a rank has registered, each range under a slot of its own, and what it has mapped of its
// peers' registrations.
class Registrations {
 public:
  // Finds a free slot for a range; -1 for NULL with 0 bytes, which is nothing, and legal. Ranges
  // must not overlap.
  Status find_slot(const void* pointer, size_t bytes, int* slot) const;

  // `memory` is how peers reach the range; NULL where they do not map it.
  void add(const void* pointer, size_t bytes, int slot,
           std::unique_ptr<RegisteredMemory> memory = nullptr);

  // Refuses a pointer at which no range begins; NULL is legal, and has slot -1.
  Status registration_of(const void* pointer, int* slot) const;

  void remove(const void* pointer) { ranges_.erase(reinterpret_cast<uintptr_t>(pointer)); }

  // Keeps what this rank has mapped of a peer's registration, by the peer's slot.
  void keep_mapping(int peer, int slot, std::unique_ptr<Mapping> mapping);
  void unmap(int peer, int slot) { mappings_.erase({peer, slot}); }

  // The place of memory that lies in a range as a whole; false if it does not.
  bool find_location(const void* begin, uint64_t bytes, uint64_t* place) const;

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
