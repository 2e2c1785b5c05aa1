// SPDX-License-Identifier: Apache-2.0
// Quantisation of tokens by the formula of hepQuantization_t: a warp takes a block of elements that share a
// scale.
#pragma once

#include <cuda_fp8.h>

#include "cuda/kernel_args.h"
#include "cuda/kernels/numbers.cuh"
#include "cuda/kernels/warp.cuh"
#include "quantization.h"

namespace hep {

// Elements of a lane, and blocks that a warp has on their way at once.
constexpr int kElements = kQuantizationBlock / kWarpSize;
constexpr int kBlocksAtOnce = 4;
static_assert(kElements * sizeof(__nv_bfloat16) == sizeof(uint2) &&
              kRowGranularity % kElements == 0);

constexpr float kLargestE4m3 = 448.0f;
constexpr uint32_t kInfinity = 0x7f800000u;
constexpr int kMantissaBits = 23;

// Of FP32 numbers that are not negative, the order is that of their bits.
__device__ inline float scale_of_block(const float* values) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    const uint32_t magnitude = __float_as_uint(fabsf(values[i]));
    if (magnitude < kInfinity) largest = max(largest, magnitude);
  }
  largest = __reduce_max_sync(kFullWarp, largest);
  return largest == 0 ? 1.0f : __fdiv_rn(__uint_as_float(largest), kLargestE4m3);
}

// The biased exponent of the smallest power of two that is not less; 0 stands for 2^-127.
__device__ inline uint32_t exponent_above(float scale) {
  constexpr uint32_t kSmallest = 1u << (kMantissaBits - 1);  // 2^-127, a denormal number
  const uint32_t bits = __float_as_uint(scale);
  const bool is_power = (bits & ((1u << kMantissaBits) - 1)) == 0;
  return bits <= kSmallest ? 0 : (bits >> kMantissaBits) + !is_power;
}

__device__ inline float power_of_two(uint32_t exponent) {
  return __uint_as_float(exponent == 0 ? 1u << (kMantissaBits - 1) : exponent << kMantissaBits);
}

// To nearest even; past 448, infinities too, 448; every NaN 0x7f. (A division is not what takes the time: a
// reciprocal for each block, corrected twice by the remainder to the same bits, made a dispatch of 4096
// tokens of 7168 elements with 16 blocks no faster on 2 H200s, 622 us instead of 577.)
__device__ inline uint32_t to_e4m3(const float* values, float scale) {
  uint32_t packed = 0;
#pragma unroll
  for (int i = 0; i < kElements; i += 2) {
    const float2 pair = make_float2(__fdiv_rn(values[i], scale), __fdiv_rn(values[i + 1], scale));
    packed |= static_cast<uint32_t>(__nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3))
              << (8 * i);
  }
  return packed;
}

// Zeros after the scales of the last block, by all lanes.
__device__ inline void clear_rest(const QuantizeArgs& args, uint8_t* scales) {
  const int used = quantization_scale_bytes(args.hidden, args.quantize);
  for (int i = used + lane_index(); i < args.scale_bytes; i += kWarpSize) scales[i] = 0;
}

__device__ inline uint8_t* scales_of(const QuantizeArgs& args, int token) {
  return at<uint8_t>(args.scales, token * args.scale_stride);
}

__device__ inline void quantize_block(const QuantizeArgs& args, int token, int block, uint2 x) {
  float values[kElements];
  Word<__nv_bfloat16>::unpack(x.x, values);
  Word<__nv_bfloat16>::unpack(x.y, values + 2);
  float scale = scale_of_block(values);
  uint8_t* scales = scales_of(args, token);
  if (args.quantize == hepQuantizeUe8m0) {
    const uint32_t exponent = exponent_above(scale);
    scale = power_of_two(exponent);
    if (lane_index() == 0) scales[block] = exponent;
  } else if (lane_index() == 0) {
    reinterpret_cast<float*>(scales)[block] = scale;
  }
  const int column = block * kQuantizationBlock + lane_index() * kElements;
  const int64_t element = static_cast<int64_t>(token) * args.hidden + column;
  if (column < args.hidden) *at<uint32_t>(args.rows, element) = to_e4m3(values, scale);
}

// By all threads of the grid.
__device__ inline void quantize_rows(const QuantizeArgs& args) {
  const int blocks = ceil_div(args.hidden, kQuantizationBlock);
  const uint32_t warps = gridDim.x * (blockDim.x / kWarpSize);
  const uint32_t count = static_cast<uint32_t>(args.num_tokens) * blocks;
  const auto load = [&](uint32_t i) {
    const int column = i % blocks * kQuantizationBlock + lane_index() * kElements;
    if (column >= args.hidden) return make_uint2(0, 0);
    return *at<uint2>(
        args.x, (static_cast<int64_t>(i / blocks) * args.hidden + column) * sizeof(__nv_bfloat16));
  };
  for_each_loaded<kBlocksAtOnce>(warp_index() * gridDim.x + blockIdx.x, warps, count, load,
                                 [&](uint32_t i, uint2 x) {
                                   const int token = i / blocks, block = i % blocks;
                                   quantize_block(args, token, block, x);
                                   if (block == blocks - 1)
                                     clear_rest(args, scales_of(args, token));
                                 });
}

}  // namespace hep
