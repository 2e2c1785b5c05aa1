// SPDX-License-Identifier: Apache-2.0
// Memory of the caller's that this rank offers its peers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "base/deadline.h"
#include "base/descriptor.h"
#include "base/status.h"
#include "memory/descriptor_channel.h"
#include "memory/kind.h"
#include "memory/registrations.h"
#include "protocol/location.h"

namespace hep {

// How others reach it: plain bytes, to be all-gathered.
struct RegisteredHandle {
  uint64_t bytes;       // 0: the rank offers nothing
  uint64_t offset;      // of the memory in its allocation
  WindowHandle memory;  // the allocation
};
static_assert(std::is_trivially_copyable_v<RegisteredHandle>);

// Used by one thread at a time.
class RegisteredMemory {
 public:
  // Describes and exports `bytes` bytes at `pointer`; NULL and 0 offer nothing. Local.
  static Status create(int device, const void* pointer, size_t bytes, bool several_hosts,
                       std::unique_ptr<RegisteredMemory>* out);
  ~RegisteredMemory();

  RegisteredHandle handle() const;

  // Maps what the peers offer; NULL where that is nothing, and of this rank. Collective; `handles` [R]
  // are those of all ranks. Every rank tries all its peers, also after a failure. As Window::connect.
  Status map_peers(const std::vector<RegisteredHandle>& handles, int rank, Deadline deadline,
                   std::vector<std::unique_ptr<Mapping>>* mappings);

  // Closes what was needed for mapping. The caller has made sure that all ranks have mapped.
  void release_descriptors();

 private:
  explicit RegisteredMemory(int device) : device_(device) {}

  const int device_;
  uint64_t id_ = 0;
  DeviceRange range_{};
  size_t bytes_ = 0, offset_ = 0;
  std::shared_ptr<Allocation> allocation_;  // NULL: none
  Descriptor placeholder_;                  // what is exchanged by a rank that has no descriptor
  std::unique_ptr<DescriptorChannel> channel_;
};

// What a communicator has registered, and what it has mapped of its peers' registrations.
struct RegisteredState {
  explicit RegisteredState(int num_ranks)
      : own(kMaxRegistrations), mappings(kMaxRegistrations * num_ranks) {}

  Registrations registrations;
  std::vector<std::unique_ptr<RegisteredMemory>> own;  // by slot; on the cuda backend
  std::vector<std::unique_ptr<Mapping>> mappings;      // [slot][rank]
};

}  // namespace hep
