// SPDX-License-Identifier: Apache-2.0
// The arithmetic of rows, for each instruction set that this machine may have. All give the same
// bits, and all read and write a row once. They need the default floating-point environment.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <vector>

#include "base/status.h"

namespace hep {

// A row of y or of partial sums, and its factor.
struct WeightedRow {
  const void* row;
  float weight;
};

// s = w * y for the first row, s = fma(w, y, s) for each further one; s is rounded once to the type
// of `to`, and every NaN becomes the canonical one. No row gives +0. `rows`: [count]; a row and
// `to`: [columns].
using SumRows = void (*)(const WeightedRow* rows, int count, int columns, void* to);

// x: [hidden] BF16; row: [hidden] E4M3; scales: [scale_bytes], zeros after the last block's. The
// formula is that of hepQuantization_t.
using QuantizeRow = void (*)(const uint16_t* x, int hidden, int32_t quantize, uint8_t* row,
                             char* scales, int scale_bytes);

struct RowArithmetic {
  SumRows sum_rows(int32_t type, int32_t to_type) const {
    return sums[index_of(type)][index_of(to_type)];
  }

  const char* name;
  SumRows sums[3][3];  // BF16, FP16, FP32
  QuantizeRow quantize_row;

 private:
  static int index_of(int32_t type) {
    return type == hepTypeFloat32 ? 2 : type == hepTypeFloat16 ? 1 : 0;
  }
};

// What this machine has: plain C first, the fastest last.
const std::vector<RowArithmetic>& row_arithmetics();

// The fastest, or the one that HEP_HOST_ISA names. hepErrorUnsupported if this machine lacks it.
Status choose_row_arithmetic(const RowArithmetic** chosen);

}  // namespace hep
