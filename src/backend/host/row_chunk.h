// SPDX-License-Identifier: Apache-2.0
// A chunk of rows on the wire: a header, rows, scales and weights, without gaps.
#pragma once

#include <cstdint>

#include "protocol/at.h"
#include "protocol/network_layout.h"

namespace hep {

// Offsets in a chunk of so many rows.
struct RowChunkLayout {
  uint64_t rows, scales, weights, end;

  static RowChunkLayout make(const ChunkHeader& header, uint64_t row_bytes, uint64_t scale_stride,
                             int top_k) {
    RowChunkLayout c{};
    c.rows = sizeof(ChunkHeader);
    c.scales = c.rows + header.num_rows * row_bytes;
    c.weights = c.scales + (header.has_scales != 0 ? header.num_rows * scale_stride : 0);
    c.end = c.weights + (header.has_weights != 0 ? header.num_rows * top_k * sizeof(float) : 0);
    return c;
  }
};

}  // namespace hep
