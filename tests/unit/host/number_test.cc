// SPDX-License-Identifier: Apache-2.0
// The library's number conversions against the definition of each format, for every code of a format
// and for what lies between.
#include "backend/host/number.h"

#include <gtest/gtest.h>
#include <hybridep.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "backend/host/quantize.h"
#include "oracle/formats.h"

namespace hep {
namespace {

using formats::decode;
using formats::encode;
using formats::Format;

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// All values of a format, the midpoints between neighbours, the floats next to those, and many others.
std::vector<float> probes(const Format& format) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> values = {0.0f, -0.0f, kInfinity, -kInfinity,
                               std::numeric_limits<float>::quiet_NaN()};
  for (uint32_t code = 0; code < format.sign_bit(); ++code) {
    const float value = decode(format, code), next = decode(format, code + 1);
    if (std::isnan(value)) continue;
    const float middle = std::isfinite(next) ? value / 2 + next / 2 : value;
    for (const float probe :
         {value, middle, std::nextafter(middle, kInfinity), std::nextafter(middle, -kInfinity)}) {
      values.push_back(probe);
      values.push_back(-probe);
    }
  }
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 65521)
    values.push_back(float_of(static_cast<uint32_t>(bits)));
  return values;
}

TEST(Formats, EncodingPicksANearestCodeAndTheEvenOneOfTwo) {
  for (const Format& format : {formats::kE4m3, formats::kE5m2}) {
    for (const float value : probes(format)) {
      if (!std::isfinite(value)) continue;
      const uint32_t chosen = encode(format, value, true);
      const double distance = std::fabs(double{decode(format, chosen)} - value);
      if (std::fabs(double{value}) > formats::largest(format)) continue;
      for (uint32_t code = 0; code < 2 * format.sign_bit(); ++code) {
        const double other = std::fabs(double{decode(format, code)} - value);
        if (!std::isfinite(other) || decode(format, code) == decode(format, chosen)) continue;
        ASSERT_LE(distance, other) << value << ": " << chosen << " rather than " << code;
        if (distance == other) {
          ASSERT_EQ(chosen & 1, 0u) << value;
        }
      }
    }
  }
}

TEST(Formats, HaveTheLargestNumbersThatTheyAreKnownFor) {
  EXPECT_EQ(formats::largest(formats::kE4m3), 448);
  EXPECT_EQ(formats::largest(formats::kE5m2), 57344);
  EXPECT_EQ(formats::largest(formats::kFloat16), 65504);
}

template <typename Bits>
void expect_exact(const Format& format, float (*from)(Bits), Bits (*to)(float)) {
  for (uint32_t code = 0; code < 2 * format.sign_bit(); ++code) {
    const float expected = decode(format, code), actual = from(static_cast<Bits>(code));
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(actual)) << code;
      continue;
    }
    ASSERT_EQ(actual, expected) << code;
    ASSERT_EQ(std::signbit(actual), std::signbit(expected)) << code;
    ASSERT_EQ(to(actual), code);
  }
  for (const float value : probes(format)) ASSERT_EQ(to(value), encode(format, value)) << value;
}

TEST(Number, Bfloat16FollowsItsDefinition) {
  expect_exact(formats::kBfloat16, from_bfloat16, to_bfloat16);
}

TEST(Number, Float16FollowsItsDefinition) {
  expect_exact(formats::kFloat16, from_float16, to_float16);
}

TEST(Number, E4m3SaturatesAndOtherwiseFollowsItsDefinition) {
  for (const float value : probes(formats::kE4m3))
    ASSERT_EQ(to_float8_e4m3(value), encode(formats::kE4m3, value, true)) << value;
}

TEST(Number, RowsOfEachTypeKeepTheirNumbersAndHaveOneNan) {
  const std::vector<float> values = {1.0f, -0.0f, -2.5f, std::numeric_limits<float>::infinity(),
                                     float_of(0xffc12345)};
  const struct {
    int32_t type;
    std::vector<uint32_t> codes;
    int bytes;
  } table[] = {
      {hepTypeBfloat16, {0x3f80, 0x8000, 0xc020, 0x7f80, 0x7fff}, 2},
      {hepTypeFloat16, {0x3c00, 0x8000, 0xc100, 0x7c00, 0x7fff}, 2},
      {hepTypeFloat32, {0x3f800000, 0x80000000, 0xc0200000, 0x7f800000, 0x7fffffff}, 4},
  };
  for (const auto& entry : table) {
    std::vector<unsigned char> row(values.size() * 4, 0);
    const int columns = static_cast<int>(values.size());
    number_type(entry.type).store(values.data(), columns, row.data());
    std::vector<float> loaded(values.size());
    number_type(entry.type).load(row.data(), columns, loaded.data());
    for (size_t i = 0; i < values.size(); ++i) {
      uint32_t code = 0;
      std::memcpy(&code, &row[i * entry.bytes], entry.bytes);
      EXPECT_EQ(code, entry.codes[i]) << entry.type << " " << i;
      if (std::isnan(values[i])) continue;
      EXPECT_EQ(loaded[i], values[i]);
    }
  }
}

// One block whose first elements are given, the others zero.
struct Quantized {
  uint8_t row[128];
  float scale;
  uint8_t exponent;
};
Quantized quantized(const std::vector<float>& x) {
  uint16_t row[128] = {};
  for (size_t i = 0; i < x.size(); ++i) row[i] = to_bfloat16(x[i]);
  Quantized result;
  char scales[4];
  quantize_row(row, 128, hepQuantizeUe8m0, result.row, scales, 1);
  result.exponent = static_cast<uint8_t>(scales[0]);
  quantize_row(row, 128, hepQuantizeFloat32, result.row, scales, 4);
  std::memcpy(&result.scale, scales, 4);
  return result;
}

TEST(Quantize, TheLargestElementBecomesTheLargestNumber) {
  const Quantized q = quantized({896, -448, 2});
  EXPECT_EQ(q.scale, 2.0f);
  EXPECT_EQ(q.exponent, 128);
  EXPECT_EQ(q.row[0], 0x7e);
  EXPECT_EQ(q.row[1], encode(formats::kE4m3, -224.0f));
  EXPECT_EQ(q.row[2], encode(formats::kE4m3, 1.0f));
}

TEST(Quantize, ScalesThatAreNoPowerOfTwoAreRoundedUpToOne) {
  const Quantized q = quantized({450});  // scale a bit over 1
  EXPECT_EQ(q.scale, 450.0f / 448.0f);
  EXPECT_EQ(q.exponent, 128);
  EXPECT_EQ(quantized({448}).exponent, 127);
  EXPECT_EQ(quantized({446}).exponent, 127);
}

TEST(Quantize, ZerosKeepTheirSignAndHaveScaleOne) {
  const Quantized q = quantized({0.0f, -0.0f});
  EXPECT_EQ(q.scale, 1.0f);
  EXPECT_EQ(q.exponent, 127);
  EXPECT_EQ(q.row[0], 0x00);
  EXPECT_EQ(q.row[1], 0x80);
}

TEST(Quantize, NotFiniteElementsDoNotTouchTheOthers) {
  const float infinity = std::numeric_limits<float>::infinity();
  const Quantized q = quantized({448, infinity, -infinity, std::nanf("")});
  EXPECT_EQ(q.scale, 1.0f);
  EXPECT_EQ(q.row[0], 0x7e);
  EXPECT_EQ(q.row[1], 0x7e);
  EXPECT_EQ(q.row[2], 0xfe);
  EXPECT_EQ(q.row[3], 0x7f);
}

TEST(Quantize, TheSmallestScaleOfUe8m0IsTwoToMinus127) {
  EXPECT_EQ(quantized({0x1p-133f}).exponent, 0);
  EXPECT_EQ(quantized({0x1.fep127f}).exponent, 127 + 120);
}

TEST(Quantize, TheLastBlockMayBeShorterAndZerosFollowTheScales) {
  std::vector<uint16_t> x(144, to_bfloat16(1.0f));
  std::fill(x.begin() + 128, x.end(), to_bfloat16(448.0f));
  std::vector<uint8_t> row(144);
  unsigned char scales[8];
  std::memset(scales, 0xcc, sizeof scales);
  quantize_row(x.data(), 144, hepQuantizeUe8m0, row.data(), reinterpret_cast<char*>(scales), 8);
  const std::vector<int> expected = {127 - 8, 127, 0, 0, 0, 0, 0, 0};  // 1/448 < 2^-8
  EXPECT_EQ(std::vector<int>(scales, scales + 8), expected);
  EXPECT_EQ(row[0], encode(formats::kE4m3, 256.0f));
  EXPECT_EQ(row[143], 0x7e);
}

}  // namespace
}  // namespace hep
