// SPDX-License-Identifier: Apache-2.0
// The sizes of block-wise quantisation.
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

}  // namespace hep
