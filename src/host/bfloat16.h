// SPDX-License-Identifier: Apache-2.0
// BF16 numbers: the upper half of an FP32.
#pragma once

#include <cstdint>
#include <cstring>

namespace hep {

using Bfloat16 = uint16_t;  // its bits

inline float to_float(Bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// Rounds to nearest even; every NaN becomes the canonical one.
inline Bfloat16 to_bfloat16(float value) {
  constexpr Bfloat16 kNan = 0x7fff;
  if (value != value) return kNan;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t odd = (bits >> 16) & 1;
  return static_cast<Bfloat16>((bits + 0x7fff + odd) >> 16);
}

}  // namespace hep
