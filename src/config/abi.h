// SPDX-License-Identifier: Apache-2.0
// Reads and writes the structs of the API. Callers may be compiled against an older or newer
// header.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"

namespace hep {

// Reads a caller's struct. Checks size and magic, and copies the part that the caller's header
// knows into *mine, which holds the defaults: zeros after size, magic and version. Refuses fields
// that this library does not know, unless they are zero. `name` is the struct's, for the error.
Status read_struct(const void* theirs, void* mine, size_t my_size, uint32_t magic,
                   const char* name);

// Check that an output struct can be filled; copy a filled struct to it, as far as it reaches.
Status check_output_struct(const void* theirs, uint32_t magic, const char* name);
void write_struct(const void* mine, size_t my_size, void* theirs);

template <typename T>
Status read_struct(const T* theirs, T* mine, uint32_t magic, const char* name) {
  return read_struct(theirs, mine, sizeof(T), magic, name);
}

}  // namespace hep
