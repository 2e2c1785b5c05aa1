// SPDX-License-Identifier: Apache-2.0
// The memory that a rank has registered, by address, each under a number of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

#include "base/status.h"

namespace hep {

class Registrations {
 public:
  // Finds a free slot for a range; -1 for NULL with 0 bytes, which is nothing, and legal. Ranges must not
  // overlap.
  Status find_slot(const void* pointer, size_t bytes, int* slot) const;

  void add(const void* pointer, size_t bytes, int slot);

  // Refuses a pointer at which no range begins; NULL is legal, and has slot -1.
  Status slot_of(const void* pointer, int* slot) const;

  void remove(const void* pointer) { ranges_.erase(reinterpret_cast<uintptr_t>(pointer)); }

  // The place of memory that lies in a range as a whole; false if it does not.
  bool find_place(const void* begin, uint64_t bytes, uint64_t* place) const;

 private:
  struct Range {
    size_t bytes;
    int slot;
  };
  std::map<uintptr_t, Range> ranges_;  // by beginning
};

}  // namespace hep
