// SPDX-License-Identifier: Apache-2.0
// Number formats by their definition, for the tests: slow, plain, and apart from the library.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace formats {

struct Format {
  int exponent_bits, mantissa_bits;
  bool has_infinity;  // otherwise all ones are NaN, and the rest of that exponent are numbers

  constexpr int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  constexpr uint32_t sign_bit() const { return 1u << (exponent_bits + mantissa_bits); }
};

constexpr Format kBfloat16{8, 7, true};
constexpr Format kFloat16{5, 10, true};
constexpr Format kE4m3{4, 3, false};
constexpr Format kE5m2{5, 2, true};

inline float decode(const Format& format, uint32_t code) {
  const uint32_t mantissa = code & ((1u << format.mantissa_bits) - 1);
  const uint32_t all_ones = (1u << format.exponent_bits) - 1;
  const uint32_t exponent = (code >> format.mantissa_bits) & all_ones;
  const float sign = (code & format.sign_bit()) != 0 ? -1.0f : 1.0f;
  if (exponent == all_ones && format.has_infinity)
    return mantissa != 0 ? std::numeric_limits<float>::quiet_NaN()
                         : sign * std::numeric_limits<float>::infinity();
  if (exponent == all_ones && mantissa == (1u << format.mantissa_bits) - 1)
    return std::numeric_limits<float>::quiet_NaN();
  const int unit = 1 - format.bias() - format.mantissa_bits;  // of denormal numbers: 2 to this
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), unit);
  const uint32_t significand = (1u << format.mantissa_bits) + mantissa;
  return sign * std::ldexp(static_cast<float>(significand), unit + static_cast<int>(exponent) - 1);
}

inline double largest(const Format& format) {
  const uint32_t infinity = format.sign_bit() - (1u << format.mantissa_bits);
  return decode(format, format.has_infinity ? infinity - 1 : format.sign_bit() - 2);
}

// To nearest even. Past the largest number infinite, or with `saturate` the largest. NaN is all
// ones.
inline uint32_t encode(const Format& format, float value, bool saturate = false) {
  if (std::isnan(value)) return format.sign_bit() - 1;
  const uint32_t sign = std::signbit(value) ? format.sign_bit() : 0;
  const double magnitude = std::fabs(static_cast<double>(value));
  const uint32_t infinity = format.sign_bit() - (1u << format.mantissa_bits);
  const uint32_t past = saturate ? encode(format, static_cast<float>(largest(format))) : infinity;
  if (std::isinf(magnitude)) return sign | past;
  if (magnitude == 0) return sign;

  int exponent = std::max(std::ilogb(magnitude), 1 - format.bias());
  const double steps = std::nearbyint(std::ldexp(magnitude, format.mantissa_bits - exponent));
  if (std::ldexp(steps, exponent - format.mantissa_bits) > largest(format)) return sign | past;
  // A denormal number has no step of the leading one; rounding up to it carries to the exponent.
  const auto code = static_cast<uint32_t>(exponent + format.bias() - 1) << format.mantissa_bits;
  return sign | (code + static_cast<uint32_t>(steps));
}

}  // namespace formats
