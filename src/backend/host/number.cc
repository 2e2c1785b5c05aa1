// SPDX-License-Identifier: Apache-2.0
#include "backend/host/number.h"

#include <hybridep.h>

#include <cstring>

namespace hep {
namespace {

constexpr int kFloatMantissa = 23;
constexpr int kFloatBias = 127;
constexpr uint32_t kFloatSign = 0x80000000;

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Drops the lowest bits, to nearest even; a carry moves on to the exponent, as it should.
uint32_t round_off(uint32_t bits, int count) {
  const uint32_t odd = (bits >> count) & 1;
  return (bits + (uint32_t{1} << (count - 1)) - 1 + odd) >> count;
}

// Rounds a magnitude to a format of fewer bits, with its denormal numbers, as if exponents had no end.
uint32_t narrow(uint32_t magnitude, int mantissa_bits, int bias) {
  const int dropped = kFloatMantissa - mantissa_bits;
  const int exponent = static_cast<int>(magnitude >> kFloatMantissa) - kFloatBias + bias;
  if (exponent > 0) {
    const auto rebias = static_cast<uint32_t>(kFloatBias - bias) << kFloatMantissa;
    return round_off(magnitude - rebias, dropped);
  }
  const int shift = dropped + 1 - exponent;
  if (shift > kFloatMantissa + 1) return 0;  // below half of the smallest denormal number
  const uint32_t mantissa =
      (magnitude & ((1u << kFloatMantissa) - 1)) | (uint32_t{1} << kFloatMantissa);
  return round_off(mantissa, shift);
}

template <typename Bits, float (*kToFloat)(Bits)>
void load_row(const void* row, int columns, float* values) {
  const auto* bits = static_cast<const Bits*>(row);
  for (int h = 0; h < columns; ++h) values[h] = kToFloat(bits[h]);
}

template <typename Bits, Bits (*kFromFloat)(float)>
void store_row(const float* values, int columns, void* row) {
  auto* bits = static_cast<Bits*>(row);
  for (int h = 0; h < columns; ++h) bits[h] = kFromFloat(values[h]);
}

float from_float32(uint32_t bits) { return float_of(bits); }

uint32_t to_float32(float value) {
  constexpr uint32_t kNan = 0x7fffffff;
  return value != value ? kNan : bits_of(value);
}

}  // namespace

float from_bfloat16(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

uint16_t to_bfloat16(float value) {
  constexpr uint16_t kNan = 0x7fff;
  return value != value ? kNan : static_cast<uint16_t>(round_off(bits_of(value), 16));
}

float from_float16(uint16_t bits) {
  constexpr uint32_t kInfinity = 0x7c00;
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t magnitude = bits & 0x7fff;
  if (magnitude >= kInfinity) return float_of(sign | 0x7f800000 | magnitude << 13);
  // Exponents in the range of FP32 make denormal numbers normal, too.
  constexpr float kRebias = 0x1p112f;
  const float value = float_of(magnitude << 13) * kRebias;
  return float_of(sign | bits_of(value));
}

uint16_t to_float16(float value) {
  constexpr uint32_t kNan = 0x7fff, kInfinity = 0x7c00;
  if (value != value) return kNan;
  const uint32_t sign = bits_of(value) & kFloatSign;
  uint32_t magnitude = narrow(bits_of(value) & ~kFloatSign, 10, 15);
  if (magnitude > kInfinity) magnitude = kInfinity;
  return static_cast<uint16_t>(sign >> 16 | magnitude);
}

uint8_t to_float8_e4m3(float value) {
  constexpr uint32_t kNan = 0x7f, kLargest = 0x7e;
  if (value != value) return kNan;
  const uint32_t sign = bits_of(value) & kFloatSign;
  uint32_t magnitude = narrow(bits_of(value) & ~kFloatSign, 3, 7);
  if (magnitude > kLargest) magnitude = kLargest;
  return static_cast<uint8_t>(sign >> 24 | magnitude);
}

const NumberType& number_type(int32_t type) {
  static constexpr NumberType kBfloat16{load_row<uint16_t, from_bfloat16>,
                                        store_row<uint16_t, to_bfloat16>};
  static constexpr NumberType kFloat16{load_row<uint16_t, from_float16>,
                                       store_row<uint16_t, to_float16>};
  static constexpr NumberType kFloat32{load_row<uint32_t, from_float32>,
                                       store_row<uint32_t, to_float32>};
  return type == hepTypeFloat32 ? kFloat32 : type == hepTypeFloat16 ? kFloat16 : kBfloat16;
}

}  // namespace hep
