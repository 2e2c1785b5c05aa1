// SPDX-License-Identifier: Apache-2.0
// The memory that ranks of this process share. They find each other's here, without an import.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>

#include "base/fork.h"
#include "memory/kind.h"

namespace hep {

class LocalAllocations {
 public:
  static LocalAllocations& instance();

  void add(uint64_t id, const std::shared_ptr<Allocation>& allocation);
  void remove(uint64_t id);

  // Returns NULL if it is gone.
  std::shared_ptr<Allocation> find(uint64_t id);

 private:
  HeldOverForks mutex_;
  std::unordered_map<uint64_t, std::weak_ptr<Allocation>> allocations_ HEP_GUARDED_BY(mutex_);
};

}  // namespace hep
