// SPDX-License-Identifier: Apache-2.0
#include "memory/local_allocations.h"

namespace hep {

// This is never destroyed, because communicators may be destroyed at exit.
LocalAllocations& LocalAllocations::instance() {
  static LocalAllocations* const allocations = new LocalAllocations;
  return *allocations;
}

void LocalAllocations::add(uint64_t id, const std::shared_ptr<Allocation>& allocation) {
  const Lock lock(mutex_);
  allocations_[id] = allocation;
}

void LocalAllocations::remove(uint64_t id) {
  const Lock lock(mutex_);
  allocations_.erase(id);
}

std::shared_ptr<Allocation> LocalAllocations::find(uint64_t id) {
  const Lock lock(mutex_);
  const auto found = allocations_.find(id);
  return found == allocations_.end() ? nullptr : found->second.lock();
}

}  // namespace hep
