// SPDX-License-Identifier: Apache-2.0
#include "registrations.h"

#include <iterator>

namespace hep {

Status Registrations::add(const void* pointer, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  if ((pointer == nullptr) != (bytes == 0))
    return error(hepErrorInvalidArgument, "pointer is %p and bytes %zu: give both or none", pointer,
                 bytes);
  if (pointer == nullptr) return Status();
  if (bytes > UINTPTR_MAX - begin)
    return error(hepErrorInvalidArgument, "%zu bytes at %p do not fit in the address space", bytes,
                 pointer);
  const auto next = ranges_.lower_bound(begin);
  const bool meets_next = next != ranges_.end() && next->first < begin + bytes;
  const bool meets_previous =
      next != ranges_.begin() && std::prev(next)->first + std::prev(next)->second > begin;
  if (meets_next || meets_previous)
    return error(hepErrorInvalidArgument, "%zu bytes at %p overlap memory that is registered",
                 bytes, pointer);
  ranges_[begin] = bytes;
  return Status();
}

Status Registrations::remove(const void* pointer) {
  if (pointer == nullptr || ranges_.erase(reinterpret_cast<uintptr_t>(pointer)) == 1)
    return Status();
  return error(hepErrorInvalidArgument, "pointer %p is not registered", pointer);
}

}  // namespace hep
