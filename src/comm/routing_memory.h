// SPDX-License-Identifier: Apache-2.0
// Memory that callers bring for their routings.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"

namespace hep {

// The claim of a routing on its memory, as long as it lives: no other routing of the process has
// any of it.
class RoutingMemory {
 public:
  RoutingMemory() = default;
  ~RoutingMemory();
  RoutingMemory(const RoutingMemory&) = delete;
  RoutingMemory& operator=(const RoutingMemory&) = delete;

  // `needed`: bytes that the routing takes.
  Status claim(void* memory, uint64_t bytes, uint64_t needed);

  void* get() const { return memory_; }  // NULL: the library's

 private:
  void* memory_ = nullptr;
};

}  // namespace hep
