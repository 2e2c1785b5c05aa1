// SPDX-License-Identifier: Apache-2.0
#include "memory/peer_memory.h"

#include "base/identity.h"

namespace hep {

// Never destroyed: communicators may be destroyed at exit.
LocalAllocations& LocalAllocations::instance() {
  static LocalAllocations* const allocations = new LocalAllocations;
  return *allocations;
}

void LocalAllocations::add(uint64_t id, const std::shared_ptr<Allocation>& allocation) {
  const std::lock_guard<std::mutex> lock(mutex_);
  allocations_[id] = allocation;
}

void LocalAllocations::remove(uint64_t id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  allocations_.erase(id);
}

std::shared_ptr<Allocation> LocalAllocations::find(uint64_t id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = allocations_.find(id);
  return found == allocations_.end() ? nullptr : found->second.lock();
}

Status map_peer_memory(int device, int rank, int peer, const WindowHandle& handle, int descriptor,
                       std::unique_ptr<Mapping>* out) {
  const MemoryKindOperations* operations = nullptr;
  HEP_TRY(find_memory_kind(handle.kind, &operations));
  std::shared_ptr<Allocation> local;
  if (handle.process == process_identity()) {
    local = LocalAllocations::instance().find(handle.window);
    if (!local)
      return error(hepErrorPeerLost, "rank %d cannot map the memory of rank %d, which is gone",
                   rank, peer);
    descriptor = local->descriptor();
  }
  const Status mapped = operations->map(device, {handle, descriptor, local}, out);
  if (mapped.ok()) return mapped;
  return error(mapped.result() == hepErrorCuda ? hepErrorUnreachable : mapped.result(),
               "rank %d cannot map the memory of rank %d: %s", rank, peer,
               mapped.message().c_str());
}

}  // namespace hep
