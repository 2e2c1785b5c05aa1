// SPDX-License-Identifier: Apache-2.0
// What a dispatched row is made of: numbers of one type, and scales beside them.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <string>
#include <tuple>

namespace perf {

// One for each block of 128 elements of a row.
enum class Scales { kNone, kFloat32, kUe8m0 };

struct Format {
  hepDataType_t type = hepTypeBfloat16;          // of rows as they arrive
  Scales scales = Scales::kNone;                 // that arrive beside them
  hepQuantization_t quantize = hepQuantizeNone;  // otherwise x is BF16, and has no scales

  bool is_quantized() const { return quantize != hepQuantizeNone; }
  bool has_scales() const { return scales != Scales::kNone; }
  hepDataType_t x_type() const { return is_quantized() ? hepTypeBfloat16 : type; }
  bool can_combine() const;  // rows that dispatch brings, with nothing beside them

  int64_t x_bytes(int hidden) const;  // of a row
  int64_t row_bytes(int hidden) const;
  int scale_columns(int hidden) const;
  int scale_element_bytes() const { return scales == Scales::kFloat32 ? 4 : 1; }
  int64_t scale_bytes(int hidden) const {  // beside a row
    return int64_t{scale_columns(hidden)} * scale_element_bytes();
  }

  // "bf16", "fp8-e4m3+fp32", or "bf16>fp8-e4m3+ue8m0" where x is quantised.
  std::string text() const;

  bool operator==(const Format& other) const {
    return std::tie(type, scales, quantize) == std::tie(other.type, other.scales, other.quantize);
  }
};

bool find_type(const std::string& name, hepDataType_t* type);
bool find_scales(const std::string& name, Scales* scales);
bool find_quantization(const std::string& name, hepQuantization_t* quantization);

const char* type_name(hepDataType_t type);
const char* scales_name(Scales scales);
const char* quantization_name(hepQuantization_t quantization);

}  // namespace perf
