// SPDX-License-Identifier: Apache-2.0
// What a dispatched row is made of: numbers of one type, and scales beside them.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace bench {

// The words of the command line and of the results for the values of a type.
template <typename T>
using Names = std::vector<std::pair<std::string, T>>;

template <typename T>
std::string name_of(const Names<T>& names, T value) {
  for (const auto& [name, candidate] : names) {
    if (candidate == value) return name;
  }
  return "?";
}

// One for each block of 128 elements of a row.
enum class Scales { kNone, kFloat32, kUe8m0 };

extern const Names<hepDataType_t> kTypeNames;
extern const Names<Scales> kScalesNames;
extern const Names<hepQuantization_t> kQuantizationNames;

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
};

}  // namespace bench
