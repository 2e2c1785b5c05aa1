// SPDX-License-Identifier: Apache-2.0
#include "memory/registrations.h"

#include <bitset>
#include <iterator>

#include "protocol/location.h"

namespace hep {

Status Registrations::find_slot(const void* pointer, size_t bytes, int* slot) const {
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  *slot = -1;
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
      next != ranges_.begin() && std::prev(next)->first + std::prev(next)->second.bytes > begin;
  if (meets_next || meets_previous)
    return error(hepErrorInvalidArgument, "%zu bytes at %p overlap memory that is registered",
                 bytes, pointer);
  std::bitset<kMaxRegistrations> taken;
  for (const auto& [address, range] : ranges_) taken.set(range.slot);
  if (taken.all())
    return error(hepErrorInvalidUsage,
                 "%d ranges of memory are registered; there is room for no more",
                 kMaxRegistrations);
  *slot = 0;
  while (taken[*slot]) ++*slot;
  return Status();
}

void Registrations::add(const void* pointer, size_t bytes, int slot) {
  if (slot >= 0) ranges_[reinterpret_cast<uintptr_t>(pointer)] = {bytes, slot};
}

Status Registrations::slot_of(const void* pointer, int* slot) const {
  *slot = -1;
  if (pointer == nullptr) return Status();
  const auto range = ranges_.find(reinterpret_cast<uintptr_t>(pointer));
  if (range == ranges_.end())
    return error(hepErrorInvalidArgument, "pointer %p is not registered", pointer);
  *slot = range->second.slot;
  return Status();
}

bool Registrations::find_place(const void* begin, uint64_t bytes, uint64_t* place) const {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  auto range = ranges_.upper_bound(address);
  if (range == ranges_.begin()) return false;
  --range;
  const uint64_t offset = address - range->first;
  if (offset >= range->second.bytes || bytes > range->second.bytes - offset) return false;
  *place = registered_place(range->second.slot, offset);
  return true;
}

}  // namespace hep
