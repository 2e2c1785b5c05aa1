// SPDX-License-Identifier: Apache-2.0
#include "config/abi.h"

#include <hybridep.h>

#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <type_traits>

namespace hep {
namespace {

// The beginning of every struct of the API.
struct StructHeader {
  size_t size;
  uint32_t magic;
  uint32_t version;
};
static_assert(sizeof(StructHeader) == 16);

// A later version must not append a field where older callers have padding, because nobody zeroes
// padding.
template <typename Struct>
constexpr bool kHasNoPadding = std::has_unique_object_representations_v<Struct>;
static_assert(kHasNoPadding<hepUpdate_t>);
static_assert(kHasNoPadding<hepDispatchArgs_t>);
static_assert(kHasNoPadding<hepCombineArgs_t>);

// No version's struct is larger. A larger size is garbage, and nothing must be read so far.
constexpr size_t kMaxStructBytes = 4096;

Status read_header(const void* theirs, uint32_t magic, const char* name, StructHeader* header) {
  if (!theirs) return error(hepErrorInvalidArgument, "%s is NULL", name);
  std::memcpy(header, theirs, sizeof *header);
  if (header->size < sizeof *header || header->size > kMaxStructBytes)
    return error(hepErrorInvalidArgument,
                 "%s has size %zu, but must have %zu to %zu; begin with its initializer macro",
                 name, header->size, sizeof *header, kMaxStructBytes);
  if (header->magic != magic)
    return error(hepErrorInvalidArgument,
                 "%s has magic 0x%08" PRIx32 ", but must have 0x%08" PRIx32
                 "; begin with its initializer macro",
                 name, header->magic, magic);
  return Status();
}

}  // namespace

Status read_struct(const void* theirs, void* mine, size_t my_size, uint32_t magic,
                   const char* name) {
  StructHeader header;
  HEP_TRY(read_header(theirs, magic, name, &header));
  const char* source = static_cast<const char*>(theirs);
  const size_t known = std::min(header.size, my_size);
  std::memcpy(static_cast<char*>(mine) + sizeof header, source + sizeof header,
              known - sizeof header);
  for (size_t offset = known; offset < header.size; ++offset)
    if (source[offset] != 0)
      return error(hepErrorUnsupported,
                   "%s of version %" PRIu32
                   " uses a field at byte %zu, which this library of "
                   "version %d does not know",
                   name, header.version, offset, HEP_VERSION);
  return Status();
}

Status check_output_struct(const void* theirs, uint32_t magic, const char* name) {
  StructHeader header;
  return read_header(theirs, magic, name, &header);
}

void write_struct(const void* mine, size_t my_size, void* theirs) {
  StructHeader header;
  std::memcpy(&header, theirs, sizeof header);
  std::memcpy(static_cast<char*>(theirs) + sizeof header,
              static_cast<const char*>(mine) + sizeof header,
              std::min(header.size, my_size) - sizeof header);
}

}  // namespace hep
