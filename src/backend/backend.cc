// SPDX-License-Identifier: Apache-2.0
#include "backend/backend.h"

#include <algorithm>
#include <cinttypes>

#include "protocol/data_type.h"
#include "protocol/shape.h"

namespace hep {

Status find_rows_in_heap(const LaneContext& context, const char* name, const void* rows,
                         int64_t num_rows, int64_t row_bytes, bool* in_heap) {
  const char* window = static_cast<const char*>(context.windows[context.rank]);
  const auto heap = reinterpret_cast<uintptr_t>(window + context.lane.window_layout.heap);
  const auto end = reinterpret_cast<uintptr_t>(window + context.lane.window_layout.total);
  const auto begin = reinterpret_cast<uintptr_t>(rows);
  *in_heap = begin >= heap && begin < end;
  if (*in_heap && num_rows > static_cast<int64_t>(end - begin) / row_bytes)
    return error(hepErrorInvalidArgument,
                 "rank %d: %s has %" PRId64 " rows of %" PRId64 " bytes, but only %" PRIu64
                 " bytes of the communicator's heap follow its address",
                 context.rank, name, num_rows, row_bytes, static_cast<uint64_t>(end - begin));
  return {};
}

Status find_outputs_in_heap(const LaneContext& context, const hepCombineArgs_t& call,
                            bool* in_heap) {
  constexpr int64_t kMostRows = int64_t{1} << 48;  // of an expert; more are in no heap
  const Shape& shape = context.lane.shape;
  const int experts = call.layout == hepLayoutExpertPadded ? shape.num_local_experts() : 1;
  return find_rows_in_heap(context, "y", call.y, std::min(call.capacity, kMostRows) * experts,
                           call.hidden * element_bytes(call.type), in_heap);
}

}  // namespace hep
