// SPDX-License-Identifier: Apache-2.0
// What lies where in the arrays that dispatch writes and combine reads.
#pragma once

#include <hybridep.h>

#include <cstdint>

#include "protocol/host_device.h"
#include "protocol/records.h"

namespace hep {

constexpr int64_t kDropped = -1;

// Where a selection's row lies in an expert layout; kDropped if it is past the capacity. A
// selection that no update has made is dropped, too: its row would lie outside of the output.
HEP_HOST_DEVICE constexpr int64_t row_of_selection(int32_t layout, int64_t capacity,
                                                   int32_t num_experts,
                                                   const int32_t* expert_offsets,
                                                   const Selection& selection) {
  if (layout == hepLayoutExpertMajor)
    return selection.place < capacity ? selection.place : kDropped;
  if (selection.expert >= num_experts) return kDropped;
  const int64_t index = int64_t{selection.place} - expert_offsets[selection.expert];
  return index >= 0 && index < capacity ? selection.expert * capacity + index : kDropped;
}

// Rows of an expert that an output takes, of `count` that begin at `offset` in the expert-major
// layout; expert-padded gives each expert the capacity.
HEP_HOST_DEVICE constexpr int64_t rows_below_capacity(int32_t layout, int64_t capacity,
                                                      int32_t offset, int32_t count) {
  const int64_t room = layout == hepLayoutExpertMajor ? capacity - offset : capacity;
  if (room <= 0) return 0;
  return count < room ? count : room;
}

// The number of the element in which column-major scales hold a column of a row: [columns][stride],
// expert-padded [EL][columns][stride].
HEP_HOST_DEVICE constexpr int64_t scale_element(int32_t layout, int64_t capacity, int columns,
                                                int64_t stride, int64_t row, int column) {
  if (layout != hepLayoutExpertPadded) return column * stride + row;
  return (row / capacity * columns + column) * stride + row % capacity;
}

}  // namespace hep
