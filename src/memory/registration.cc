// SPDX-License-Identifier: Apache-2.0
#include "memory/registration.h"

#include <sys/mman.h>

#include <bitset>
#include <iterator>

#include "base/identity.h"
#include "memory/local_allocations.h"
#include "memory/peer_memory.h"
#include "protocol/location.h"

namespace hep {

Status RegisteredMemory::create(int device, const void* pointer, size_t bytes, bool several_hosts,
                                std::unique_ptr<RegisteredMemory>* out) {
  std::unique_ptr<RegisteredMemory> memory(new RegisteredMemory(device));
  HEP_TRY(random_bytes(&memory->id_, sizeof memory->id_));
  if (bytes > 0) {
    HEP_TRY(find_device_range(device, pointer, bytes, several_hosts, &memory->range_));
    const MemoryKindOperations* operations = nullptr;
    HEP_TRY(find_memory_kind(memory->range_.kind, &operations));
    HEP_TRY(operations->borrow(device, memory->range_.begin, memory->range_.bytes,
                               &memory->allocation_));
    memory->offset_ = reinterpret_cast<uintptr_t>(pointer) - memory->range_.begin;
    LocalAllocations::instance().add(memory->id_, memory->allocation_);
  }
  int descriptor = memory->allocation_ ? memory->allocation_->descriptor() : -1;
  if (descriptor < 0) {
    memory->placeholder_ = Descriptor(::memfd_create("hybridep", MFD_CLOEXEC));
    if (!memory->placeholder_.valid()) return system_error("memfd_create fails");
    descriptor = memory->placeholder_.get();
  }
  HEP_TRY(DescriptorChannel::open(descriptor, &memory->channel_));
  *out = std::move(memory);
  return Status();
}

RegisteredMemory::~RegisteredMemory() {
  if (allocation_) LocalAllocations::instance().remove(id_);
}

RegisteredHandle RegisteredMemory::handle() const {
  RegisteredHandle handle{};
  handle.offset = offset_;
  handle.memory.window = id_;
  handle.memory.process = process_identity();
  handle.memory.host = host_identity();
  handle.memory.bytes = range_.bytes;
  handle.memory.kind = range_.kind;
  handle.memory.descriptor = channel_->address();
  if (allocation_) allocation_->describe(&handle.memory);
  return handle;
}

Status RegisteredMemory::map_peers(const std::vector<RegisteredHandle>& handles, int rank,
                                   Deadline deadline,
                                   std::vector<std::unique_ptr<Mapping>>* mappings) {
  std::vector<WindowHandle> memory;
  for (const RegisteredHandle& handle : handles) memory.push_back(handle.memory);
  return hep::map_peers(device_, rank, memory, channel_.get(), deadline, mappings);
}

void RegisteredMemory::release_descriptors() {
  channel_.reset();
  placeholder_.reset();
  if (allocation_) allocation_->close_descriptor();
}

Status Registrations::find_slot(const void* pointer, size_t bytes, int* slot) const {
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  *slot = -1;
  if ((pointer == nullptr) != (bytes == 0))
    return error(hepErrorInvalidArgument, "pointer is %p and bytes %zu: give both or none", pointer,
                 bytes);
  if (pointer == nullptr) return Status();
  if (bytes > UINTPTR_MAX - begin)
    return error(hepErrorInvalidArgument, "%zu bytes at %p do not fit in the address space", bytes,
                 pointer);
  const auto next = ranges_.lower_bound(begin);
  const bool meets_next = next != ranges_.end() && next->first < begin + bytes;
  const bool meets_previous =
      next != ranges_.begin() && std::prev(next)->first + std::prev(next)->second.bytes > begin;
  if (meets_next || meets_previous)
    return error(hepErrorInvalidArgument, "%zu bytes at %p overlap memory that is registered",
                 bytes, pointer);
  std::bitset<kMaxRegistrations> taken;
  for (const auto& [address, range] : ranges_) taken.set(range.slot);
  if (taken.all())
    return error(hepErrorInvalidUsage,
                 "%d ranges of memory are registered; there is room for no more",
                 kMaxRegistrations);
  *slot = 0;
  while (taken[*slot]) ++*slot;
  return Status();
}

void Registrations::add(const void* pointer, size_t bytes, int slot,
                        std::unique_ptr<RegisteredMemory> memory) {
  if (slot >= 0) ranges_[reinterpret_cast<uintptr_t>(pointer)] = {bytes, slot, std::move(memory)};
}

Status Registrations::registration_of(const void* pointer, int* slot) const {
  *slot = -1;
  if (pointer == nullptr) return Status();
  const auto range = ranges_.find(reinterpret_cast<uintptr_t>(pointer));
  if (range == ranges_.end())
    return error(hepErrorInvalidArgument, "pointer %p is not registered", pointer);
  *slot = range->second.slot;
  return Status();
}

bool Registrations::find_location(const void* begin, uint64_t bytes, uint64_t* location) const {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  auto range = ranges_.upper_bound(address);
  if (range == ranges_.begin()) return false;
  --range;
  const uint64_t offset = address - range->first;
  if (offset >= range->second.bytes || bytes > range->second.bytes - offset) return false;
  *location = registered_location(range->second.slot, offset);
  return true;
}

void Registrations::keep_mapping(int peer, int slot, std::unique_ptr<Mapping> mapping) {
  mappings_[{peer, slot}] = std::move(mapping);
}

}  // namespace hep
