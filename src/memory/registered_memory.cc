// SPDX-License-Identifier: Apache-2.0
#include "memory/registered_memory.h"

#include <sys/mman.h>

#include "base/identity.h"
#include "memory/local_allocations.h"
#include "memory/peer_memory.h"

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
    memory->bytes_ = bytes;
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
  handle.bytes = bytes_;
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

}  // namespace hep
