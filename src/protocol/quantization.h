// SPDX-License-Identifier: Apache-2.0
// Block-wise quantisation to E4M3: its sizes and its scales.
#pragma once

#include <hybridep.h>

#include <cstdint>

#include "protocol/host_device.h"
#include "protocol/shape.h"

namespace hep {

constexpr int kQuantizationBlock = 128;  // elements that share a scale

HEP_HOST_DEVICE constexpr int quantization_scale_bytes(int hidden, int32_t quantize) {
  return ceil_div(hidden, kQuantizationBlock) *
         (quantize == hepQuantizeFloat32 ? static_cast<int>(sizeof(float)) : 1);
}

constexpr float kLargestE4m3 = 448.0f;

// A scale of UE8M0 is the biased exponent of a power of two; 0 stands for 2^-127, which FP32 holds
// as a denormal number.
constexpr int kMantissaBits = 23;  // of FP32
constexpr uint32_t kSmallestScaleBits = 1u << (kMantissaBits - 1);

// Returns the exponent of the smallest power of two that is not less than an FP32 scale. The scale
// is positive and given by its bits.
HEP_HOST_DEVICE constexpr uint32_t exponent_above(uint32_t scale_bits) {
  const bool is_power = (scale_bits & ((1u << kMantissaBits) - 1)) == 0;
  return scale_bits <= kSmallestScaleBits ? 0 : (scale_bits >> kMantissaBits) + !is_power;
}

// Returns the bits of that power in FP32.
HEP_HOST_DEVICE constexpr uint32_t power_of_two_bits(uint32_t exponent) {
  return exponent == 0 ? kSmallestScaleBits : exponent << kMantissaBits;
}

}  // namespace hep
