// SPDX-License-Identifier: Apache-2.0
// Quantisation is compared with the oracle, and for every pair of numbers with plain code.
#include "backend/cuda/kernels/dispatch/quantize.cuh"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "device.h"
#include "kernels.cuh"
#include "nearest.h"
#include "oracle/reference_numbers.h"
#include "protocol/quantization.h"
#include "protocol/shape.h"

namespace {

using device_test::Array;
using device_test::Wrong;
using hep::kWarpSize;
using hep::dispatch::kElements;
using hep::dispatch::kScaleLanes;

constexpr int kThreads = 256;
constexpr int kBlocks = 1056;
constexpr uint32_t kSign = 0x8000;
constexpr uint32_t kInfinity = 0x7f80;  // in BF16: the magnitudes below are the finite numbers

// -------------------------------------------------------------------------------------- every pair

// The scale of a block: the bytes that are stored, and the number that the block is divided by.
struct Scale {
  uint32_t stored;
  float divisor;
};

// By magnitude, from the oracle.
std::vector<Scale> scales_of_magnitudes(hepQuantization_t quantize) {
  std::vector<Scale> scales;
  for (uint32_t largest = 0; largest < kInfinity; ++largest) {
    const auto x = static_cast<uint16_t>(largest);
    unsigned char row, bytes[sizeof(float)];
    reference::quantize(quantize, &x, 1, &row, bytes, sizeof bytes);
    Scale scale{};
    if (quantize == hepQuantizeUe8m0) {
      scale.stored = bytes[0];
      scale.divisor = std::ldexp(1.0f, bytes[0] - 127);
    } else {
      std::memcpy(&scale.stored, bytes, sizeof bytes);
      std::memcpy(&scale.divisor, bytes, sizeof bytes);
    }
    scales.push_back(scale);
  }
  return scales;
}

struct PairArgs {
  hep::QuantizeArgs quantize;  // a row for each warp
  const Scale* scales;
  const float* midpoints;  // of E4M3
  uint32_t num_midpoints;
  Wrong* wrong;
};

// A vector of a warp is two blocks. Their first element has the largest magnitude, the others have
// magnitudes that follow each other; the second block is the first with the other sign.
constexpr int kSmaller = hep::kQuantizationBlock - 1;

__device__ uint32_t code_of_element(uint32_t largest, uint32_t first, int element) {
  const uint32_t sign = element >= hep::kQuantizationBlock ? kSign : 0;
  const int index = element % hep::kQuantizationBlock;
  return sign | (index == 0 ? largest : min(first + index - 1, largest));
}

__device__ void check_vector(const PairArgs& args, int warp, uint32_t largest, uint32_t first) {
  const int column = hep::warp_lane() * kElements;
  const auto code = [&](int i) { return code_of_element(largest, first, column + i); };
  hep::dispatch::quantize_vector(args.quantize, warp, column,
                                 make_uint4(code(0) | code(1) << 16, code(2) | code(3) << 16,
                                            code(4) | code(5) << 16, code(6) | code(7) << 16));
  __syncwarp();

  const Scale scale = args.scales[largest];
  const int block = column / hep::kQuantizationBlock;
  const uint8_t* scales = hep::dispatch::scales_of(args.quantize, warp);
  const uint32_t stored = args.quantize.quantize == hepQuantizeUe8m0
                              ? scales[block]
                              : reinterpret_cast<const uint32_t*>(scales)[block];
  device_test::expect_equal(args.wrong, largest, stored, scale.stored);
  const auto* row = static_cast<const uint8_t*>(args.quantize.rows) +
                    static_cast<int64_t>(warp) * args.quantize.hidden + column;
  for (int i = 0; i < kElements; ++i) {
    const float magnitude = __uint_as_float((code(i) & ~kSign) << 16);
    const uint32_t nearest =
        device_test::nearest_code(args.midpoints, args.num_midpoints, magnitude / scale.divisor);
    device_test::expect_equal(args.wrong, uint64_t{largest} << 32 | code(i), row[i],
                              nearest | (code(i) & kSign) >> 8);
  }
  __syncwarp();
}

__global__ void quantize_pairs_kernel(PairArgs args) {
  const int warp = device_test::grid_thread() / kWarpSize;
  const int warps = device_test::grid_threads() / kWarpSize;
  for (uint32_t largest = warp; largest < kInfinity; largest += warps)
    for (uint32_t first = 0; first <= largest; first += kSmaller)
      check_vector(args, warp, largest, first);
}

void expect_pairs(hepQuantization_t quantize) {
  constexpr int kWarps = kBlocks * kThreads / kWarpSize;
  constexpr int kScaleStride = 2 * sizeof(float);
  const Array<Scale> scales(scales_of_magnitudes(quantize));
  const std::vector<float> midpoints = device_test::midpoints(formats::kE4m3);
  const Array<float> table(midpoints);
  const Array<uint8_t> rows(kWarps * hep::dispatch::kVectorElements),
      row_scales(kWarps * kScaleStride);
  const Array<Wrong> wrong(1);
  const hep::QuantizeArgs args{nullptr,
                               rows.data(),
                               row_scales.data(),
                               kScaleStride,
                               kScaleStride,
                               kWarps,
                               hep::dispatch::kVectorElements,
                               quantize};
  quantize_pairs_kernel<<<kBlocks, kThreads>>>(
      {args, scales.data(), table.data(), static_cast<uint32_t>(midpoints.size()), wrong.data()});
  device_test::expect_none(wrong);
}

TEST(Quantize, EveryNumberBesideEveryLargestOneWithFloat32Scales) {
  expect_pairs(hepQuantizeFloat32);
}

TEST(Quantize, EveryNumberBesideEveryLargestOneWithUe8m0Scales) { expect_pairs(hepQuantizeUe8m0); }

// ------------------------------------------------------------------------------------- whole rows

__global__ void quantize_rows_kernel(hep::QuantizeArgs args) {
  hep::dispatch::quantize_rows(
      args,
      hep::part_of_tokens(args.num_tokens, blockIdx.x, hep::ceil_div(args.num_tokens, gridDim.x)),
      hep::all_threads());
}

// What the blocks of a token consist of.
enum class Contents { kZeros, kDenormal, kNotANumber, kInfinite, kLargest, kMixed, kCount };

uint16_t make_code(Contents contents, uint32_t bits) {
  constexpr uint16_t kSpecial[] = {0x0000, 0x8000, 0x0001, 0x807f, 0x0080, 0x7f7f,
                                   0xff7f, 0x7f80, 0xff80, 0x7f81, 0x7fff, 0xffc0};
  const uint32_t sign = bits & kSign;
  switch (contents) {
    case Contents::kZeros: return sign;
    case Contents::kDenormal: return sign | (bits & 0x7f);
    case Contents::kNotANumber: return sign | kInfinity | 1 | (bits & 0x7f);
    case Contents::kInfinite: return sign | kInfinity;
    case Contents::kLargest: return sign | (kInfinity - 1 - (bits & 3));
    default: return (bits >> 16) % 4 == 0 ? kSpecial[bits % std::size(kSpecial)] : bits;
  }
}

// Every fourth block has the contents of its token alone, the others have some of everything.
std::vector<uint16_t> make_tokens(int num_tokens, int hidden) {
  std::mt19937 random(hidden);
  std::vector<uint16_t> x;
  for (int token = 0; token < num_tokens; ++token) {
    const auto contents = static_cast<Contents>(token % static_cast<int>(Contents::kCount));
    for (int h = 0; h < hidden; ++h) {
      const uint32_t bits = random();
      const bool alone = h / hep::kQuantizationBlock % 4 == 0;
      x.push_back(make_code(alone || bits >> 31 != 0 ? contents : Contents::kMixed, bits));
    }
  }
  return x;
}

void expect_rows(hepQuantization_t quantize, int hidden) {
  constexpr int kTokens = 67;
  constexpr int kUnused = 8;  // bytes of scales that a row has no blocks for; they become 0
  constexpr int kBeyond = 8;  // bytes between the scales of rows; they stay what they are
  constexpr uint8_t kPoison = 0xcb;
  const int scale_bytes = hep::quantization_scale_bytes(hidden, quantize) + kUnused;
  const int stride = (scale_bytes + 3) / 4 * 4 + kBeyond;
  const std::vector<uint16_t> tokens = make_tokens(kTokens, hidden);
  const Array<uint16_t> x(tokens);
  const Array<uint8_t> rows(std::vector<uint8_t>((kTokens + 1) * hidden, kPoison));
  const Array<uint8_t> scales(std::vector<uint8_t>(kTokens * stride, kPoison));
  quantize_rows_kernel<<<5, kThreads>>>({x.data(), rows.data(), scales.data(),
                                         static_cast<uint64_t>(stride), scale_bytes, kTokens,
                                         hidden, quantize});
  device_test::expect_done();

  std::vector<uint8_t> expected_rows((kTokens + 1) * hidden, kPoison);
  std::vector<uint8_t> expected_scales(kTokens * stride, kPoison);
  for (int token = 0; token < kTokens; ++token)
    reference::quantize(quantize, &tokens[token * hidden], hidden, &expected_rows[token * hidden],
                        &expected_scales[token * stride], scale_bytes);
  EXPECT_EQ(rows.values(), expected_rows);
  EXPECT_EQ(scales.values(), expected_scales);
}

// Rows of less than a block, of blocks that are not whole, of a unit and one more block.
TEST(Quantize, RowsOfAnyLengthWithZerosInfinitiesAndNotANumberAreTheOracles) {
  for (const hepQuantization_t quantize : {hepQuantizeFloat32, hepQuantizeUe8m0}) {
    for (const int hidden : {16, 128, 144, 1008, hep::dispatch::kUnitElements,
                             hep::dispatch::kUnitElements + 16, 2192}) {
      SCOPED_TRACE("quantize " + std::to_string(quantize) + ", hidden " + std::to_string(hidden));
      expect_rows(quantize, hidden);
    }
  }
}

}  // namespace
