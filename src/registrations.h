// SPDX-License-Identifier: Apache-2.0
// The memory that a rank has registered.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

#include "status.h"

namespace hep {

class Registrations {
 public:
  // NULL with 0 bytes is nothing, and legal. Ranges must not overlap.
  Status add(const void* pointer, size_t bytes);

  // Refuses a pointer at which no range begins; NULL is legal.
  Status remove(const void* pointer);

 private:
  std::map<uintptr_t, size_t> ranges_;  // begin to size
};

}  // namespace hep
