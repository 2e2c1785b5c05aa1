// SPDX-License-Identifier: Apache-2.0
// Sums of rows in FP32, in registers, and the numbers that rows consist of. Roundings are to
// nearest even and infinite past the largest number; every NaN becomes the canonical one of its
// type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/kernels/common/bit_cast.cuh"

namespace hep {

// How the numbers in a 32-bit word of a row become FP32, and FP32 becomes a word.
template <typename Type>
struct Word;

template <>
struct Word<__nv_bfloat16> {
  static constexpr int kValues = 2;
  static __device__ void unpack(uint32_t word, float* values) {
    values[0] = __uint_as_float(word << 16);
    values[1] = __uint_as_float(word & 0xffff0000u);
  }
  static __device__ uint32_t pack(const float* values) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(values[0], values[1]);
    return bit_cast<uint32_t>(pair);
  }
};

template <>
struct Word<__half> {
  static constexpr int kValues = 2;
  static __device__ void unpack(uint32_t word, float* values) {
    const float2 pair = __half22float2(bit_cast<__half2>(word));
    values[0] = pair.x;
    values[1] = pair.y;
  }
  static __device__ uint32_t pack(const float* values) {
    return half_bits(values[0]) | half_bits(values[1]) << 16;
  }

 private:
  static __device__ uint32_t half_bits(float value) {
    return isnan(value) ? 0x7fffu : __half_as_ushort(__float2half_rn(value));
  }
};

template <>
struct Word<float> {
  static constexpr int kValues = 1;
  static __device__ void unpack(uint32_t word, float* values) { values[0] = __uint_as_float(word); }
  static __device__ uint32_t pack(const float* values) {
    return isnan(values[0]) ? 0x7fffffffu : __float_as_uint(values[0]);
  }
};

// Bytes of a row of Out that belong to so many bytes of a row of In.
template <typename In, typename Out>
__host__ __device__ constexpr int64_t scaled_bytes(int64_t bytes) {
  return bytes / static_cast<int64_t>(sizeof(In)) * static_cast<int64_t>(sizeof(Out));
}

// The sum of 16 bytes of rows of In. Values begin as zeros. Without that, lanes past the end of a
// slice would have undefined sums, for which ptxas spills (combine for sm_100: up to 1086 bytes of
// stores in a kernel; with zeros no loop over whole slices of BF16 is longer, for either
// architecture).
template <typename In>
struct VectorSum {
  static constexpr int kWords = sizeof(uint4) / sizeof(uint32_t);
  static constexpr int kValues = kWords * Word<In>::kValues;
  float values[kValues] = {};

  // sum = weight * x
  __device__ void assign(uint4 x, float weight) {
    float terms[kValues];
    unpack(x, terms);
#pragma unroll
    for (int i = 0; i < kValues; ++i) values[i] = __fmul_rn(weight, terms[i]);
  }

  // sum = fma(weight, x, sum)
  __device__ void add(uint4 x, float weight) {
    float terms[kValues];
    unpack(x, terms);
#pragma unroll
    for (int i = 0; i < kValues; ++i) values[i] = __fmaf_rn(weight, terms[i], values[i]);
  }

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kValues; ++i) values[i] = 0.0f;
  }

  // -0 becomes +0.
  __device__ void add_zero() {
#pragma unroll
    for (int i = 0; i < kValues; ++i) values[i] = __fadd_rn(values[i], 0.0f);
  }

  __device__ void add(const VectorSum& other) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) values[i] = __fadd_rn(values[i], other.values[i]);
  }

  // To what a row of In can hold.
  __device__ void round() {
#pragma unroll
    for (int i = 0; i < kValues; i += Word<In>::kValues)
      Word<In>::unpack(Word<In>::pack(values + i), values + i);
  }

  // Rounds to scaled_bytes<In, Out>(16) bytes, to which `to` is aligned, or to 16.
  template <typename Out>
  __device__ void store(char* to) const {
    constexpr int kOutWords = kValues / Word<Out>::kValues;
    uint32_t words[kOutWords];
#pragma unroll
    for (int i = 0; i < kOutWords; ++i) words[i] = Word<Out>::pack(values + i * Word<Out>::kValues);
    if constexpr (kOutWords == 2) {
      *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
    } else {
#pragma unroll
      for (int i = 0; i < kOutWords; i += kWords)
        *reinterpret_cast<uint4*>(to + i * sizeof(uint32_t)) =
            make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
    }
  }

 private:
  static __device__ void unpack(uint4 x, float* terms) {
    const uint32_t words[kWords] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < kWords; ++i) Word<In>::unpack(words[i], terms + i * Word<In>::kValues);
  }
};

}  // namespace hep
