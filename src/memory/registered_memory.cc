// SPDX-License-Identifier: Apache-2.0
#include "memory/registered_memory.h"

#include <sys/mman.h>

#include <algorithm>

#include "base/identity.h"
#include "memory/peer_memory.h"

namespace hep {
namespace {

bool needs_descriptor(const RegisteredHandle& handle) {
  return handle.bytes > 0 && handle.memory.kind == MemoryKind::cuda_descriptor;
}

}  // namespace

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
  PeerFailures failures;
  mappings->resize(handles.size());
  const auto map = [&](int peer, int descriptor) {
    failures.add(
        map_peer_memory(device_, rank, peer, handles[peer].memory, descriptor, &(*mappings)[peer]));
  };
  std::vector<int> others;
  std::vector<DescriptorAddress> addresses;
  for (int peer = 0; peer < static_cast<int>(handles.size()); ++peer) {
    const RegisteredHandle& handle = handles[peer];
    addresses.push_back(handle.memory.descriptor);
    if (peer == rank) continue;
    const bool local = handle.memory.process == process_identity();
    if (!local) others.push_back(peer);
    if (handle.bytes > 0 && (local || !needs_descriptor(handle))) map(peer, -1);
  }
  // All or none take part, whether or not they have a descriptor to give.
  if (!others.empty() && std::any_of(handles.begin(), handles.end(), needs_descriptor)) {
    const auto receive = [&](int peer, int descriptor) {
      if (needs_descriptor(handles[peer])) map(peer, descriptor);
    };
    failures.add(channel_->exchange(rank, others, addresses, receive, deadline));
  }
  return failures.status();
}

void RegisteredMemory::release_descriptors() {
  channel_.reset();
  placeholder_.reset();
  if (allocation_) allocation_->close_descriptor();
}

}  // namespace hep
