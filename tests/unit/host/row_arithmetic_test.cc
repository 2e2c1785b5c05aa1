// SPDX-License-Identifier: Apache-2.0
// The arithmetic of rows, on every instruction set that this machine has, against the oracle: for
// every code of a format and for what lies between.
#include "backend/host/row_arithmetic.h"

#include <gtest/gtest.h>
#include <hybridep.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "oracle/formats.h"
#include "oracle/reference_numbers.h"

namespace hep {
namespace {

using formats::decode;
using formats::encode;
using formats::Format;

using Bytes = std::vector<unsigned char>;

constexpr int32_t kTypes[] = {hepTypeBfloat16, hepTypeFloat16, hepTypeFloat32};

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// All values of a format, the midpoints between neighbours, the floats next to those, and many
// others.
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

// Every code of a type of 2 bytes; of FP32 the values that are hard to round to those, and NaNs.
Bytes every_value(int32_t type) {
  Bytes row;
  if (type != hepTypeFloat32) {
    std::vector<uint16_t> codes(65536);
    std::iota(codes.begin(), codes.end(), 0);
    row.resize(codes.size() * 2);
    std::memcpy(row.data(), codes.data(), row.size());
    return row;
  }
  std::vector<float> values = probes(formats::kBfloat16);
  for (const float value : probes(formats::kFloat16)) values.push_back(value);
  row.resize(values.size() * 4);
  std::memcpy(row.data(), values.data(), row.size());
  for (const uint32_t nan : {0x7f800001u, 0xff800001u, 0x7fffffffu, 0xffc12345u}) {
    row.resize(row.size() + 4);
    std::memcpy(&row[row.size() - 4], &nan, 4);
  }
  return row;
}

Bytes sum_of_oracle(int32_t type, const std::vector<WeightedRow>& rows, int columns,
                    int32_t to_type) {
  std::vector<float> sum(columns, 0.0f), row(columns);
  for (size_t i = 0; i < rows.size(); ++i) {
    reference::load_row(type, rows[i].row, columns, row.data());
    for (int h = 0; h < columns; ++h)
      sum[h] = i == 0 ? rows[i].weight * row[h] : std::fmaf(rows[i].weight, row[h], sum[h]);
  }
  Bytes out(columns * reference::bytes_of(to_type));
  reference::store_row(to_type, sum.data(), columns, out.data());
  return out;
}

void expect_sum(int32_t type, const std::vector<WeightedRow>& rows, int columns) {
  for (const int32_t to_type : kTypes) {
    const Bytes expected = sum_of_oracle(type, rows, columns, to_type);
    for (const RowArithmetic& arithmetic : row_arithmetics()) {
      Bytes out(expected.size() + 1, 0xcc);  // the last byte is not the row's
      arithmetic.sum_rows(type, to_type)(rows.data(), static_cast<int>(rows.size()), columns,
                                         out.data());
      ASSERT_EQ(out.back(), 0xcc) << arithmetic.name;
      out.pop_back();
      const auto wrong = std::mismatch(expected.begin(), expected.end(), out.begin()).first;
      ASSERT_EQ(wrong, expected.end()) << arithmetic.name << ": " << type << " to " << to_type
                                       << ", byte " << wrong - expected.begin();
    }
  }
}

TEST(SumRows, OneRowIsRoundedToEachTypeOnce) {
  for (const int32_t type : kTypes) {
    const Bytes row = every_value(type);
    const int columns = static_cast<int>(row.size()) / reference::bytes_of(type);
    for (const float weight : {1.0f, -0.3f, 0x1p-20f, std::nanf("")})
      expect_sum(type, {{row.data(), weight}}, columns);
  }
}

TEST(SumRows, FurtherRowsAreAddedInTheirOrder) {
  for (const int32_t type : kTypes) {
    const int bytes = reference::bytes_of(type);
    const Bytes values = every_value(type);
    const int columns = static_cast<int>(values.size()) / bytes;
    std::vector<Bytes> turned;
    std::vector<WeightedRow> rows;
    const float weights[] = {0.7f, 1.0f, -0.25f, 0x1.8p-3f};
    for (int i = 0; i < 4; ++i) {
      turned.push_back(values);
      std::rotate(turned[i].begin(), turned[i].begin() + i * 7919 * bytes, turned[i].end());
    }
    for (int i = 0; i < 4; ++i) {
      rows.push_back({turned[i].data(), weights[i]});
      expect_sum(type, rows, columns);
    }
  }
}

TEST(SumRows, RowsMayHaveAnyLengthAndPlace) {
  for (const int32_t type : kTypes) {
    const int bytes = reference::bytes_of(type);
    const Bytes values = every_value(type);
    for (int columns = 1; columns < 1100; columns += columns < 70 ? 1 : 101)
      expect_sum(type, {{&values[3 * bytes], 0.5f}, {&values[8 * bytes], 3.0f}}, columns);
  }
}

TEST(SumRows, NoRowGivesZero) {
  for (const int32_t type : kTypes) expect_sum(type, {}, 77);
}

void expect_quantized(const std::vector<uint16_t>& x) {
  const int hidden = static_cast<int>(x.size());
  const int blocks = (hidden + 127) / 128;
  for (const int32_t quantize : {hepQuantizeFloat32, hepQuantizeUe8m0}) {
    const int scale_bytes = blocks * 4 + 4;
    Bytes row(hidden), scales(scale_bytes);
    reference::quantize(quantize, x.data(), hidden, row.data(), scales.data(), scale_bytes);
    for (const RowArithmetic& arithmetic : row_arithmetics()) {
      Bytes got(hidden), got_scales(scale_bytes, 0xcc);
      arithmetic.quantize_row(x.data(), hidden, quantize, got.data(),
                              reinterpret_cast<char*>(got_scales.data()), scale_bytes);
      const auto wrong = std::mismatch(row.begin(), row.end(), got.begin()).first;
      ASSERT_EQ(wrong, row.end()) << arithmetic.name << ": element " << wrong - row.begin();
      ASSERT_EQ(got_scales, scales) << arithmetic.name;
    }
  }
}

TEST(QuantizeRow, EveryNumberBesideEachLargestElement) {
  std::vector<uint16_t> x(65536);
  std::iota(x.begin(), x.end(), 0);  // 128 neighbours a block, NaN and infinities at the end
  expect_quantized(x);
  for (uint32_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint16_t>(i * 40503);  // far apart
  expect_quantized(x);
}

TEST(QuantizeRow, EveryCodeOfE4m3AndTheMidpointsBetween) {
  std::vector<uint16_t> x;
  for (const float value : probes(formats::kE4m3)) {
    if (x.size() % 128 == 0) x.push_back(reference::to_bfloat16(448.0f));  // scale 1
    if (std::fabs(value) <= 448.0f) x.push_back(reference::to_bfloat16(value));
  }
  expect_quantized(x);
}

TEST(QuantizeRow, TheLastBlockMayBeShorter) {
  for (const int hidden : {16, 128, 144, 272})
    expect_quantized(std::vector<uint16_t>(hidden, reference::to_bfloat16(3.0f)));
}

// One block whose first elements are given, the others zero.
struct Quantized {
  uint8_t row[128];
  float scale;
  uint8_t exponent;
};
Quantized quantized(const std::vector<float>& x) {
  uint16_t row[128] = {};
  for (size_t i = 0; i < x.size(); ++i) row[i] = reference::to_bfloat16(x[i]);
  const QuantizeRow quantize_row = row_arithmetics().back().quantize_row;
  Quantized result;
  char scales[4];
  quantize_row(row, 128, hepQuantizeUe8m0, result.row, scales, 1);
  result.exponent = static_cast<uint8_t>(scales[0]);
  quantize_row(row, 128, hepQuantizeFloat32, result.row, scales, 4);
  std::memcpy(&result.scale, scales, 4);
  return result;
}

TEST(QuantizeRow, TheLargestElementBecomesTheLargestNumber) {
  const Quantized q = quantized({896, -448, 2});
  EXPECT_EQ(q.scale, 2.0f);
  EXPECT_EQ(q.exponent, 128);
  EXPECT_EQ(q.row[0], 0x7e);
  EXPECT_EQ(q.row[1], encode(formats::kE4m3, -224.0f));
  EXPECT_EQ(q.row[2], encode(formats::kE4m3, 1.0f));
}

TEST(QuantizeRow, ScalesThatAreNoPowerOfTwoAreRoundedUpToOne) {
  const Quantized q = quantized({450});  // scale a bit over 1
  EXPECT_EQ(q.scale, 450.0f / 448.0f);
  EXPECT_EQ(q.exponent, 128);
  EXPECT_EQ(quantized({448}).exponent, 127);
  EXPECT_EQ(quantized({446}).exponent, 127);
}

TEST(QuantizeRow, ZerosKeepTheirSignAndHaveScaleOne) {
  const Quantized q = quantized({0.0f, -0.0f});
  EXPECT_EQ(q.scale, 1.0f);
  EXPECT_EQ(q.exponent, 127);
  EXPECT_EQ(q.row[0], 0x00);
  EXPECT_EQ(q.row[1], 0x80);
}

TEST(QuantizeRow, NotFiniteElementsDoNotTouchTheOthers) {
  const float infinity = std::numeric_limits<float>::infinity();
  const Quantized q = quantized({448, infinity, -infinity, std::nanf("")});
  EXPECT_EQ(q.scale, 1.0f);
  EXPECT_EQ(q.row[0], 0x7e);
  EXPECT_EQ(q.row[1], 0x7e);
  EXPECT_EQ(q.row[2], 0xfe);
  EXPECT_EQ(q.row[3], 0x7f);
}

TEST(QuantizeRow, TheSmallestScaleOfUe8m0IsTwoToMinus127) {
  EXPECT_EQ(quantized({0x1p-133f}).exponent, 0);
  EXPECT_EQ(quantized({0x1.fep127f}).exponent, 127 + 120);
}

TEST(ChooseRowArithmetic, TakesTheFastestOrTheOneThatIsNamed) {
  const RowArithmetic* chosen = nullptr;
  for (const RowArithmetic& arithmetic : row_arithmetics()) {
    setenv("HEP_HOST_ISA", arithmetic.name, 1);
    EXPECT_TRUE(choose_row_arithmetic(&chosen).ok());
    EXPECT_EQ(chosen, &arithmetic);
  }
  unsetenv("HEP_HOST_ISA");
  EXPECT_TRUE(choose_row_arithmetic(&chosen).ok());
  EXPECT_EQ(chosen, &row_arithmetics().back());
}

}  // namespace
}  // namespace hep
