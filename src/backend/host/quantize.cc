// SPDX-License-Identifier: Apache-2.0
#include "backend/host/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/host/number.h"
#include "protocol/quantization.h"

namespace hep {
namespace {

constexpr float kLargestE4m3 = 448.0f;
constexpr int kScaleBias = 127;

float scale_of(const uint16_t* x, int count) {
  float largest = 0;
  for (int i = 0; i < count; ++i) {
    const float magnitude = std::fabs(from_bfloat16(x[i]));
    if (std::isfinite(magnitude)) largest = std::max(largest, magnitude);
  }
  return largest == 0 ? 1.0f : largest / kLargestE4m3;
}

// The exponent of the smallest power of two that is not less.
int exponent_above(float scale) {
  int exponent;
  const float mantissa = std::frexp(scale, &exponent);  // from 0.5 to less than 1
  return std::max(mantissa == 0.5f ? exponent - 1 : exponent, -kScaleBias);
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
      const int exponent = exponent_above(scale);
      scale = std::ldexp(1.0f, exponent);
      scales[block] = static_cast<char>(exponent + kScaleBias);
    } else {
      std::memcpy(scales + block * sizeof scale, &scale, sizeof scale);
    }
    for (int h = begin; h < end; ++h) row[h] = to_float8_e4m3(from_bfloat16(x[h]) / scale);
  }
}

}  // namespace hep
