// SPDX-License-Identifier: Apache-2.0
// Rounding by search, for host and device: plain code that can be compared with every conversion.
#pragma once

#include <cstdint>
#include <vector>

#include "oracle/formats.h"

namespace device_test {

// By code: the number half way from the code's number to the next. All are exact in FP32. Infinity
// follows the largest number, in formats that have it.
inline std::vector<float> midpoints(const formats::Format& format) {
  const uint32_t first_mantissa = 1u << format.mantissa_bits;
  const uint32_t largest = format.sign_bit() - (format.has_infinity ? first_mantissa + 1 : 2);
  const auto number = [&](uint32_t code) { return double{formats::decode(format, code)}; };
  std::vector<float> found;
  for (uint32_t code = 0; code < largest; ++code)
    found.push_back(static_cast<float>((number(code) + number(code + 1)) / 2));
  if (format.has_infinity)
    found.push_back(
        static_cast<float>(number(largest) + (number(largest) - number(largest - 1)) / 2));
  return found;
}

// The code of the nearest number, of the even one if two are as near. Past the last it is the last.
__host__ __device__ inline uint32_t nearest_code(const float* midpoints, uint32_t count,
                                                 float magnitude) {
  uint32_t low = 0, high = count;
  while (low < high) {
    const uint32_t code = (low + high) / 2;
    const bool is_odd = code % 2 != 0;
    if (magnitude > midpoints[code] || (is_odd && magnitude == midpoints[code]))
      low = code + 1;
    else
      high = code;
  }
  return low;
}

}  // namespace device_test
