// SPDX-License-Identifier: Apache-2.0
#include "backend/host/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "backend/host/number.h"
#include "protocol/quantization.h"

namespace hep {
namespace {

float scale_of(const uint16_t* x, int count) {
  float largest = 0;
  for (int i = 0; i < count; ++i) {
    const float magnitude = std::fabs(from_bfloat16(x[i]));
    if (std::isfinite(magnitude)) largest = std::max(largest, magnitude);
  }
  return largest == 0 ? 1.0f : largest / kLargestE4m3;
}

// Rounds a scale up to a power of two and returns its biased exponent.
uint8_t round_up(float* scale) {
  uint32_t bits;
  std::memcpy(&bits, scale, sizeof bits);
  const uint32_t exponent = exponent_above(bits);
  bits = power_of_two_bits(exponent);
  std::memcpy(scale, &bits, sizeof bits);
  return static_cast<uint8_t>(exponent);
}

}  // namespace

void quantize_row(const uint16_t* x, int hidden, int32_t quantize, uint8_t* row, char* scales,
                  int scale_bytes) {
  std::memset(scales, 0, scale_bytes);
  for (int begin = 0; begin < hidden; begin += kQuantizationBlock) {
    const int end = std::min(hidden, begin + kQuantizationBlock);
    const int block = begin / kQuantizationBlock;
    float scale = scale_of(x + begin, end - begin);
    if (quantize == hepQuantizeUe8m0) {
      scales[block] = static_cast<char>(round_up(&scale));
    } else {
      std::memcpy(scales + block * sizeof scale, &scale, sizeof scale);
    }
    for (int h = begin; h < end; ++h) row[h] = to_float8_e4m3(from_bfloat16(x[h]) / scale);
  }
}

}  // namespace hep
