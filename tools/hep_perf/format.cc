// SPDX-License-Identifier: Apache-2.0
#include "format.h"

#include "oracle/reference_numbers.h"
#include "parse.h"

namespace perf {
namespace {

constexpr int kBlock = 128;  // elements that share a scale

constexpr Name<hepDataType_t> kTypes[] = {{"bf16", hepTypeBfloat16},
                                          {"fp16", hepTypeFloat16},
                                          {"fp32", hepTypeFloat32},
                                          {"fp8-e4m3", hepTypeFloat8E4M3},
                                          {"fp8-e5m2", hepTypeFloat8E5M2}};
constexpr Name<Scales> kScales[] = {
    {"none", Scales::kNone}, {"fp32", Scales::kFloat32}, {"ue8m0", Scales::kUe8m0}};
constexpr Name<hepQuantization_t> kQuantizations[] = {
    {"none", hepQuantizeNone}, {"fp32", hepQuantizeFloat32}, {"ue8m0", hepQuantizeUe8m0}};

}  // namespace

bool Format::can_combine() const {
  if (has_scales()) return false;
  return type == hepTypeBfloat16 || type == hepTypeFloat16 || type == hepTypeFloat32;
}

int64_t Format::x_bytes(int hidden) const {
  return int64_t{hidden} * reference::bytes_of(x_type());
}

int64_t Format::row_bytes(int hidden) const { return int64_t{hidden} * reference::bytes_of(type); }

int Format::scale_columns(int hidden) const {
  return has_scales() ? (hidden + kBlock - 1) / kBlock : 0;
}

std::string Format::text() const {
  std::string text = is_quantized() ? std::string(type_name(x_type())) + ">" : "";
  text += type_name(type);
  return has_scales() ? text + "+" + scales_name(scales) : text;
}

bool find_type(const std::string& name, hepDataType_t* type) {
  return find_value(kTypes, name, type);
}
bool find_scales(const std::string& name, Scales* scales) {
  return find_value(kScales, name, scales);
}
bool find_quantization(const std::string& name, hepQuantization_t* quantization) {
  return find_value(kQuantizations, name, quantization);
}

const char* type_name(hepDataType_t type) { return find_name(kTypes, type); }
const char* scales_name(Scales scales) { return find_name(kScales, scales); }
const char* quantization_name(hepQuantization_t quantization) {
  return find_name(kQuantizations, quantization);
}

}  // namespace perf
