// SPDX-License-Identifier: Apache-2.0
// The oracle's numbers: rows of each type as FP32 and back, and block-wise quantisation.
#pragma once

#include <hybridep.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "formats.h"

namespace reference {

inline int bytes_of(int32_t type) {
  switch (type) {
    case hepTypeFloat32: return 4;
    case hepTypeBfloat16:
    case hepTypeFloat16: return 2;
    default: return 1;
  }
}

inline float from_bfloat16(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// To nearest even; every NaN becomes 0x7fff.
inline uint16_t to_bfloat16(float value) {
  if (value != value) return 0x7fff;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t below = bits & 0xffff;
  uint32_t upper = bits >> 16;
  if (below > 0x8000 || (below == 0x8000 && (upper & 1) != 0)) ++upper;
  return static_cast<uint16_t>(upper);
}

inline float from_float16(uint16_t value) {
  static const std::vector<float> table = [] {
    std::vector<float> values;
    for (uint32_t code = 0; code < 65536; ++code)
      values.push_back(formats::decode(formats::kFloat16, code));
    return values;
  }();
  return table[value];
}

inline uint32_t to_float32(float value) {
  if (value != value) return 0x7fffffff;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// Elements of a row by their index; the row may be unaligned.
template <typename T>
T element(const void* row, int index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(row) + index * sizeof(T), sizeof(T));
  return value;
}
template <typename T>
void set_element(void* row, int index, T value) {
  std::memcpy(static_cast<char*>(row) + index * sizeof(T), &value, sizeof(T));
}

inline void load_row(int32_t type, const void* row, int hidden, float* values) {
  for (int h = 0; h < hidden; ++h)
    values[h] = type == hepTypeFloat32   ? element<float>(row, h)
                : type == hepTypeFloat16 ? from_float16(element<uint16_t>(row, h))
                                         : from_bfloat16(element<uint16_t>(row, h));
}

inline void store_row(int32_t type, const float* values, int hidden, void* row) {
  for (int h = 0; h < hidden; ++h) {
    if (type == hepTypeFloat32)
      set_element(row, h, to_float32(values[h]));
    else if (type == hepTypeFloat16)
      set_element(row, h, static_cast<uint16_t>(formats::encode(formats::kFloat16, values[h])));
    else
      set_element(row, h, to_bfloat16(values[h]));
  }
}

// What is left of a sum that travels in a type.
inline float rounded(int32_t partial_type, float sum) {
  return partial_type == hepTypeFloat32 ? sum : from_bfloat16(to_bfloat16(sum));
}

// The smallest power of two that is not less, as its exponent.
inline int exponent_above(float scale) {
  int exponent = -127;
  while (std::ldexp(1.0, exponent) < scale) ++exponent;
  return exponent;
}

// x: [hidden] BF16; row: [hidden] E4M3; scales: [scale_bytes].
inline void quantize(int32_t quantization, const void* x, int hidden, unsigned char* row,
                     unsigned char* scales, int scale_bytes) {
  std::memset(scales, 0, scale_bytes);
  for (int begin = 0; begin < hidden; begin += 128) {
    const int end = std::min(begin + 128, hidden);
    float amax = 0;
    for (int h = begin; h < end; ++h) {
      const float value = std::fabs(from_bfloat16(element<uint16_t>(x, h)));
      if (std::isfinite(value)) amax = std::max(amax, value);
    }
    float scale = amax == 0 ? 1.0f : amax / 448.0f;
    if (quantization == hepQuantizeUe8m0) {
      const int exponent = exponent_above(scale);
      scales[begin / 128] = static_cast<unsigned char>(exponent + 127);
      scale = static_cast<float>(std::ldexp(1.0, exponent));
    } else {
      set_element(scales, begin / 128, scale);
    }
    for (int h = begin; h < end; ++h) {
      const float quotient = from_bfloat16(element<uint16_t>(x, h)) / scale;
      row[h] = static_cast<unsigned char>(formats::encode(formats::kE4m3, quotient, true));
    }
  }
}

}  // namespace reference
