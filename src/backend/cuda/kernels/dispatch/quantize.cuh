// SPDX-License-Identifier: Apache-2.0
// Quantisation of tokens by the formula of hepQuantization_t.
#pragma once

#include <cuda_fp8.h>

#include "backend/cuda/kernel_args.h"
#include "backend/cuda/kernels/common/numbers.cuh"
#include "backend/cuda/kernels/common/warp.cuh"
#include "protocol/at.h"
#include "protocol/quantization.h"
#include "protocol/shape.h"

namespace hep::dispatch {

// Elements of a lane, which share a scale with those of the lanes of its group.
constexpr int kElements = sizeof(uint4) / sizeof(__nv_bfloat16);
constexpr int kScaleLanes = kQuantizationBlock / kElements;
static_assert(kWarpSize % kScaleLanes == 0 && kRowGranularity % kElements == 0);

// A warp takes so many vectors of a row at a time: where things lie is worked out once for all of
// them. (4096 tokens of 7168 elements with 16 blocks on an H200: 227 us; with a block of elements
// at a time, four a lane, 457. A reciprocal for each block, corrected to the same bits, instead of
// divisions made that no faster.)
constexpr int kVectorsOfUnit = 4;
constexpr int kVectorElements = kWarpSize * kElements;
constexpr int kUnitElements = kVectorsOfUnit * kVectorElements;

constexpr uint32_t kInfinity = 0x7f800000u;

// Of FP32 numbers that are not negative, the order is that of their bits. By all lanes.
__device__ inline float scale_of_block(const float* values) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    const uint32_t magnitude = __float_as_uint(fabsf(values[i]));
    if (magnitude < kInfinity) largest = max(largest, magnitude);
  }
  for (int distance = 1; distance < kScaleLanes; distance *= 2)
    largest = max(largest, __shfl_xor_sync(kFullWarp, largest, distance));
  return largest == 0 ? 1.0f : __fdiv_rn(__uint_as_float(largest), kLargestE4m3);
}

// To nearest even; past 448, infinities too, 448; every NaN 0x7f.
__device__ inline uint2 to_e4m3(const float* values, float scale) {
  uint32_t packed[kElements / 4] = {};
#pragma unroll
  for (int i = 0; i < kElements; i += 2) {
    const float2 pair = make_float2(__fdiv_rn(values[i], scale), __fdiv_rn(values[i + 1], scale));
    packed[i / 4] |=
        static_cast<uint32_t>(__nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3))
        << (i % 4 * 8);
  }
  return make_uint2(packed[0], packed[1]);
}

// Zeros after the scales of the last block, by all lanes.
__device__ inline void clear_rest(const QuantizeArgs& args, uint8_t* scales) {
  const int used = quantization_scale_bytes(args.hidden, args.quantize);
  for (int i = used + warp_lane(); i < args.scale_bytes; i += kWarpSize) scales[i] = 0;
}

__device__ inline uint8_t* scales_of(const QuantizeArgs& args, int token) {
  return at<uint8_t>(args.scales, token * args.scale_stride);
}

// The lane's elements of a token, from a column on. By all lanes; those past the row have zeros.
__device__ inline void quantize_vector(const QuantizeArgs& args, int token, int column, uint4 x) {
  float values[kElements];
  const uint32_t words[] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int i = 0; i < kElements / 2; ++i) Word<__nv_bfloat16>::unpack(words[i], values + 2 * i);
  float scale = scale_of_block(values);
  uint32_t exponent = 0;
  if (args.quantize == hepQuantizeUe8m0) {
    exponent = exponent_above(__float_as_uint(scale));
    scale = __uint_as_float(power_of_two_bits(exponent));
  }
  if (column >= args.hidden) return;
  *at<uint2>(args.rows, static_cast<int64_t>(token) * args.hidden + column) =
      to_e4m3(values, scale);
  if (warp_lane() % kScaleLanes != 0) return;
  uint8_t* scales = scales_of(args, token);
  const int block = column / kQuantizationBlock;
  if (args.quantize == hepQuantizeUe8m0)
    scales[block] = exponent;
  else
    reinterpret_cast<float*>(scales)[block] = scale;
}

// Some of the tokens, by whole warps.
__device__ inline void quantize_rows(const QuantizeArgs& args, TokenRange tokens,
                                     WorkShare threads) {
  const int units = ceil_div(args.hidden, kUnitElements);  // of a row
  const int count = (tokens.end - tokens.begin) * units;
  for (int i = threads.index / kWarpSize; i < count; i += threads.count / kWarpSize) {
    const int token = tokens.begin + i / units;
    const int first = i % units * kUnitElements + warp_lane() * kElements;
    const uint4* row =
        at<uint4>(args.x, static_cast<int64_t>(token) * args.hidden * sizeof(__nv_bfloat16));
    uint4 x[kVectorsOfUnit];
#pragma unroll
    for (int j = 0; j < kVectorsOfUnit; ++j) {
      const int column = first + j * kVectorElements;
      x[j] = column < args.hidden ? row[column / kElements] : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; j < kVectorsOfUnit; ++j)
      quantize_vector(args, token, first + j * kVectorElements, x[j]);
    if (i % units == units - 1) clear_rest(args, scales_of(args, token));
  }
}

}  // namespace hep::dispatch
