// SPDX-License-Identifier: Apache-2.0
// Sums of BF16 rows in FP32, in registers.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace hep {

// 16 bytes of a BF16 row, as FP32.
struct Bfloat16x8 {
  static constexpr int kValues = 8;
  float values[kValues];

  // sum = weight * x
  __device__ void assign(uint4 x, float weight) {
    const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[2 * i] = __fmul_rn(weight, __uint_as_float(words[i] << 16));
      values[2 * i + 1] = __fmul_rn(weight, __uint_as_float(words[i] & 0xffff0000u));
    }
  }

  // sum = fma(weight, x, sum)
  __device__ void add(uint4 x, float weight) {
    const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[2 * i] = __fmaf_rn(weight, __uint_as_float(words[i] << 16), values[2 * i]);
      values[2 * i + 1] =
          __fmaf_rn(weight, __uint_as_float(words[i] & 0xffff0000u), values[2 * i + 1]);
    }
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

  // To nearest even; a NaN becomes 0x7fff.
  __device__ uint4 round() const {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
      words[i] = reinterpret_cast<const uint32_t&>(pair);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
};

}  // namespace hep
