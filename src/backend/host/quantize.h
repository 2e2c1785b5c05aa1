// SPDX-License-Identifier: Apache-2.0
// Quantisation of rows on their way into the window, by the formula of hepQuantization_t.
#pragma once

#include <hybridep.h>

#include <cstdint>

namespace hep {

// x: [hidden] BF16; row: [hidden] E4M3; scales: [scale_bytes], zeros after the last block's.
void quantize_row(const uint16_t* x, int hidden, int32_t quantize, uint8_t* row, char* scales,
                  int scale_bytes);

}  // namespace hep
