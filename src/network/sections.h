// SPDX-License-Identifier: Apache-2.0
// Which section a write lies in.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hep {

// The index of the section, of those that have an offset and bytes, that holds all of a range; -1:
// none does. A write without bytes lies in the first.
template <typename Sections>
int find_section(const Sections& sections, uint64_t offset, uint64_t bytes) {
  int index = 0;
  for (const auto& section : sections) {
    const bool begins = offset >= section.offset && offset - section.offset <= section.bytes;
    if (bytes == 0 || (begins && bytes <= section.bytes - (offset - section.offset))) return index;
    ++index;
  }
  return -1;
}

}  // namespace hep
