// SPDX-License-Identifier: Apache-2.0
#include "backend.h"

#include <cinttypes>

namespace hep {

Status find_rows_in_heap(const BackendContext& context, const void* x, int num_tokens,
                         bool* in_heap) {
  const char* window = static_cast<const char*>(context.windows[context.rank]);
  const auto heap = reinterpret_cast<uintptr_t>(window + context.window_layout.heap);
  const auto end = reinterpret_cast<uintptr_t>(window + context.window_layout.total);
  const auto begin = reinterpret_cast<uintptr_t>(x);
  const uint64_t bytes = static_cast<uint64_t>(num_tokens) * context.shape.row_bytes;
  *in_heap = begin >= heap && begin < end;
  if (*in_heap && bytes > end - begin)
    return error(hepErrorInvalidArgument,
                 "rank %d: x has %d rows of %d bytes, but only %" PRIu64
                 " bytes of the communicator's "
                 "heap follow its address",
                 context.rank, num_tokens, context.shape.row_bytes,
                 static_cast<uint64_t>(end - begin));
  return {};
}

}  // namespace hep
