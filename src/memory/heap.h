// SPDX-License-Identifier: Apache-2.0
// Divides a range of bytes among allocations. It knows offsets only, not the memory behind them.
#pragma once

#include <cstdint>
#include <map>

#include "base/thread_annotations.h"

namespace hep {

class Heap {
 public:
  static constexpr uint64_t kAlignment = 256;

  explicit Heap(uint64_t bytes);

  // Takes the first block that fits. Returns false if no free block is large enough. A request of 0
  // bytes takes one unit.
  bool allocate(uint64_t bytes, uint64_t* offset);

  // Returns false if no allocation begins at the offset.
  bool free(uint64_t offset);

  uint64_t bytes() const { return bytes_; }
  uint64_t largest_free_block() const;

 private:
  const uint64_t bytes_;
  mutable Mutex mutex_;
  std::map<uint64_t, uint64_t> free_ HEP_GUARDED_BY(mutex_);  // offset to size, never adjacent
  std::map<uint64_t, uint64_t> used_ HEP_GUARDED_BY(mutex_);
};

}  // namespace hep
