// SPDX-License-Identifier: Apache-2.0
// The numbers of rows, as bits and as FP32. Roundings are to nearest even; every NaN becomes the
// canonical one of its type.
#pragma once

#include <cstdint>

namespace hep {

float from_bfloat16(uint16_t bits);
uint16_t to_bfloat16(float value);  // infinite past the largest number

float from_float16(uint16_t bits);
uint16_t to_float16(float value);  // infinite past the largest number

uint8_t to_float8_e4m3(float value);  // 448 at most

// How a row of a type that combine adds becomes FP32, and FP32 becomes a row.
struct NumberType {
  void (*load)(const void* row, int columns, float* values);
  void (*store)(const float* values, int columns, void* row);
};

const NumberType& number_type(int32_t type);

}  // namespace hep
