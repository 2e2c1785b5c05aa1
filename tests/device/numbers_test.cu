// SPDX-License-Identifier: Apache-2.0
// The numbers that rows consist of: every conversion, and sums of them.
#include "backend/cuda/kernels/common/numbers.cuh"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <type_traits>
#include <vector>

#include "device.h"
#include "kernels.cuh"
#include "nearest.h"
#include "oracle/reference_numbers.h"

namespace {

using device_test::Array;
using device_test::Wrong;

constexpr int kBlocks = 1056;
constexpr int kThreads = 256;
constexpr uint64_t kAllFloats = uint64_t{1} << 32;
constexpr uint32_t kAllCodes = 65536;

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

// The library's code is compared with the search, and the search with the definition.
TEST(Nearest, IsTheRoundingOfTheFormats) {
  for (const formats::Format& format :
       {formats::kBfloat16, formats::kFloat16, formats::kE4m3, formats::kE5m2}) {
    const std::vector<float> midpoints = device_test::midpoints(format);
    const auto expect_same = [&](float value) {
      EXPECT_EQ(device_test::nearest_code(midpoints.data(), midpoints.size(), value),
                formats::encode(format, value, !format.has_infinity))
          << value;
    };
    for (uint32_t code = 0; code < midpoints.size(); ++code) {
      expect_same(formats::decode(format, code));
      expect_same(std::nextafter(midpoints[code], 0.0f));
      expect_same(midpoints[code]);
      expect_same(std::nextafter(midpoints[code], INFINITY));
    }
    expect_same(INFINITY);
  }
}

// values: [2][kAllCodes], of codes in the lower and the upper half of a word.
template <typename Type>
__global__ void unpack_all_kernel(float* values) {
  const uint32_t code = device_test::grid_thread();
  float pair[2];
  hep::Word<Type>::unpack(code | (kAllCodes - 1 - code) << 16, pair);
  values[code] = pair[0];
  values[kAllCodes + kAllCodes - 1 - code] = pair[1];
}

template <typename Type>
void expect_unpacked(const formats::Format& format) {
  const Array<float> values(2 * kAllCodes);
  unpack_all_kernel<Type><<<kAllCodes / kThreads, kThreads>>>(values.data());
  device_test::expect_done();
  const std::vector<float> actual = values.values();
  for (uint32_t i = 0; i < 2 * kAllCodes; ++i) {
    const float expected = formats::decode(format, i % kAllCodes);
    if (std::isnan(expected))
      ASSERT_TRUE(std::isnan(actual[i])) << "code " << i % kAllCodes;
    else
      ASSERT_EQ(bits_of(actual[i]), bits_of(expected)) << "code " << i % kAllCodes;
  }
}

TEST(Numbers, EveryBfloat16AndFloat16BecomesFloat32) {
  expect_unpacked<__nv_bfloat16>(formats::kBfloat16);
  expect_unpacked<__half>(formats::kFloat16);
}

template <typename Type>
__global__ void pack_all_kernel(const float* midpoints, uint32_t count, Wrong* wrong) {
  for (uint64_t i = device_test::grid_thread(); i < kAllFloats; i += device_test::grid_threads()) {
    const uint32_t bits = i;
    const float value = __uint_as_float(bits);
    const float pair[] = {value, value};
    const uint32_t expected =
        isnan(value)
            ? 0x7fffu
            : (bits >> 31) << 15 | device_test::nearest_code(midpoints, count, fabsf(value));
    device_test::expect_equal(wrong, i, hep::Word<Type>::pack(pair), expected | expected << 16);
  }
}

template <>
__global__ void pack_all_kernel<float>(const float*, uint32_t, Wrong* wrong) {
  for (uint64_t i = device_test::grid_thread(); i < kAllFloats; i += device_test::grid_threads()) {
    const uint32_t bits = i;
    const float value = __uint_as_float(bits);
    float unpacked;
    hep::Word<float>::unpack(bits, &unpacked);
    device_test::expect_equal(wrong, i, __float_as_uint(unpacked), bits);
    device_test::expect_equal(wrong, i, hep::Word<float>::pack(&value),
                              (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffffffu : bits);
  }
}

template <typename Type>
void expect_packed(const std::vector<float>& midpoints) {
  const Array<float> table(midpoints);
  const Array<Wrong> wrong(1);
  pack_all_kernel<Type><<<kBlocks, kThreads>>>(table.data(), midpoints.size(), wrong.data());
  device_test::expect_none(wrong);
}

TEST(Numbers, EveryFloat32BecomesTheNearestBfloat16) {
  expect_packed<__nv_bfloat16>(device_test::midpoints(formats::kBfloat16));
}

TEST(Numbers, EveryFloat32BecomesTheNearestFloat16) {
  expect_packed<__half>(device_test::midpoints(formats::kFloat16));
}

TEST(Numbers, EveryFloat32StaysWhatItIsAndNotANumberBecomesCanonical) { expect_packed<float>({}); }

// ---------------------------------------------------------------------------------------- sums

// Three vectors of a row, and the weights of the first two.
struct Terms {
  uint4 x, y, z;
  float weight_x, weight_y;
};

// round(weight_x * x + weight_y * y) + z, where z is a sum by itself that has passed a zero.
template <typename In, typename Out>
__global__ void sum_kernel(const Terms* terms, char* sums) {
  const uint64_t i = device_test::grid_thread();
  hep::VectorSum<In> sum, other;
  sum.assign(terms[i].x, terms[i].weight_x);
  sum.add(terms[i].y, terms[i].weight_y);
  sum.round();
  other.clear();
  other.add(terms[i].z, 1.0f);
  other.add_zero();
  sum.add(other);
  sum.template store<Out>(sums + i * hep::scaled_bytes<In, Out>(sizeof(uint4)));
}

template <typename Type>
constexpr int32_t type_of() {
  return std::is_same_v<Type, float>    ? hepTypeFloat32
         : std::is_same_v<Type, __half> ? hepTypeFloat16
                                        : hepTypeBfloat16;
}

// The sum of one vector, by the oracle's numbers.
template <typename In, typename Out>
void expected_sum(const Terms& terms, char* out) {
  constexpr int kValues = sizeof(uint4) / sizeof(In);
  float x[kValues], y[kValues], z[kValues];
  reference::load_row(type_of<In>(), &terms.x, kValues, x);
  reference::load_row(type_of<In>(), &terms.y, kValues, y);
  reference::load_row(type_of<In>(), &terms.z, kValues, z);
  for (int i = 0; i < kValues; ++i) x[i] = std::fma(terms.weight_y, y[i], terms.weight_x * x[i]);
  char rounded[sizeof(uint4)];
  reference::store_row(type_of<In>(), x, kValues, rounded);
  reference::load_row(type_of<In>(), rounded, kValues, x);
  for (int i = 0; i < kValues; ++i) x[i] += std::fma(1.0f, z[i], 0.0f) + 0.0f;
  reference::store_row(type_of<Out>(), x, kValues, out);
}

template <typename In, typename Out>
void expect_sums() {
  constexpr int kCount = 64 * kThreads;
  constexpr size_t kOutBytes = sizeof(uint4) / sizeof(In) * sizeof(Out);
  std::mt19937 random(7);
  std::vector<Terms> terms(kCount);
  const auto word = [&] { return static_cast<uint32_t>(random()); };
  for (Terms& term : terms) {
    for (uint4* vector : {&term.x, &term.y, &term.z})
      *vector = make_uint4(word(), word(), word(), word());
    term.weight_x = float_of((word() & 0x80ffffffu) | 0x3f000000u);
    term.weight_y = float_of((word() & 0x80ffffffu) | 0x3f000000u);
  }
  terms[0].x = terms[0].y = terms[0].z = make_uint4(0x80008000u, 0x80000000u, 0, 0x8000u);
  const Array<Terms> inputs(terms);
  const Array<char> sums(kCount * kOutBytes);
  sum_kernel<In, Out><<<kCount / kThreads, kThreads>>>(inputs.data(), sums.data());
  device_test::expect_done();
  const std::vector<char> actual = sums.values();
  for (int i = 0; i < kCount; ++i) {
    char expected[kOutBytes];
    expected_sum<In, Out>(terms[i], expected);
    ASSERT_EQ(std::memcmp(expected, &actual[i * kOutBytes], kOutBytes), 0)
        << "types " << type_of<In>() << " and " << type_of<Out>() << ", sum " << i;
  }
}

TEST(Numbers, SumsAreThoseOfPlainCode) {
  expect_sums<__nv_bfloat16, __nv_bfloat16>();
  expect_sums<__nv_bfloat16, __half>();
  expect_sums<__nv_bfloat16, float>();
  expect_sums<__half, __nv_bfloat16>();
  expect_sums<__half, float>();
  expect_sums<float, __nv_bfloat16>();
  expect_sums<float, __half>();
  expect_sums<float, float>();
}

}  // namespace
