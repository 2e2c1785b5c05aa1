// SPDX-License-Identifier: Apache-2.0
#include "memory/heap.h"

#include <algorithm>
#include <iterator>

namespace hep {

Heap::Heap(uint64_t bytes) : bytes_(bytes / kAlignment * kAlignment) {
  if (bytes_ > 0) free_[0] = bytes_;
}

bool Heap::allocate(uint64_t bytes, uint64_t* offset) {
  const Lock lock(mutex_);
  if (bytes > bytes_) return false;
  const uint64_t size = std::max((bytes + kAlignment - 1) / kAlignment, uint64_t{1}) * kAlignment;
  const auto block = std::find_if(free_.begin(), free_.end(),
                                  [size](const auto& entry) { return entry.second >= size; });
  if (block == free_.end()) return false;

  *offset = block->first;
  const uint64_t rest = block->second - size;
  free_.erase(block);
  if (rest > 0) free_[*offset + size] = rest;
  used_[*offset] = size;
  return true;
}

bool Heap::free(uint64_t offset) {
  const Lock lock(mutex_);
  const auto allocation = used_.find(offset);
  if (allocation == used_.end()) return false;
  uint64_t size = allocation->second;
  used_.erase(allocation);

  auto next = free_.lower_bound(offset);
  if (next != free_.end() && next->first == offset + size) {
    size += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second == offset) {
      previous->second += size;
      return true;
    }
  }
  free_[offset] = size;
  return true;
}

uint64_t Heap::largest_free_block() const {
  const Lock lock(mutex_);
  uint64_t largest = 0;
  for (const auto& [offset, size] : free_) largest = std::max(largest, size);
  return largest;
}

}  // namespace hep
