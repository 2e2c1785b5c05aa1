// SPDX-License-Identifier: Apache-2.0
#include "comm/routing_memory.h"

#include <hybridep.h>

#include <cinttypes>
#include <map>

#include "base/fork.h"
#include "base/thread_annotations.h"
#include "protocol/shape.h"

namespace hep {
namespace {

// Claimed memory of the process: where it begins and ends.
struct Claims {
  HeldOverForks mutex;
  std::map<uintptr_t, uintptr_t> ends HEP_GUARDED_BY(mutex);
};

// It is never destroyed: routings may go later than statics.
Claims& claims() {
  static Claims& all = *new Claims;
  return all;
}

}  // namespace

Status RoutingMemory::claim(void* memory, uint64_t bytes, uint64_t needed) {
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  if (begin % kSectionAlignment != 0)
    return error(hepErrorInvalidArgument,
                 "memory of hepRoutingConfig_t is %p, must be aligned to %" PRIu64 " bytes", memory,
                 kSectionAlignment);
  if (bytes < needed)
    return error(hepErrorInvalidArgument,
                 "memory_bytes of hepRoutingConfig_t is %" PRIu64
                 ", but such a routing takes %" PRIu64 " (hepRoutingMemoryBytes)",
                 bytes, needed);
  const uintptr_t end = begin + needed;
  Claims& all = claims();
  const Lock lock(all.mutex);
  const auto after = all.ends.lower_bound(end);  // the first that begins behind this
  if (after != all.ends.begin() && std::prev(after)->second > begin)
    return error(hepErrorInvalidArgument,
                 "memory of hepRoutingConfig_t, %p and %" PRIu64
                 " bytes, is in use: another routing has memory from %p on",
                 memory, needed, reinterpret_cast<void*>(std::prev(after)->first));
  all.ends.emplace(begin, end);
  memory_ = memory;
  return Status();
}

RoutingMemory::~RoutingMemory() {
  if (memory_ == nullptr) return;
  Claims& all = claims();
  const Lock lock(all.mutex);
  all.ends.erase(reinterpret_cast<uintptr_t>(memory_));
}

}  // namespace hep
