// SPDX-License-Identifier: Apache-2.0
#include "format.h"

#include "oracle/reference_numbers.h"

namespace bench {
namespace {

constexpr int kBlock = 128;  // elements that share a scale

}  // namespace

const Names<hepDataType_t> kTypeNames = {{"bf16", hepTypeBfloat16},
                                         {"fp16", hepTypeFloat16},
                                         {"fp32", hepTypeFloat32},
                                         {"fp8-e4m3", hepTypeFloat8E4M3},
                                         {"fp8-e5m2", hepTypeFloat8E5M2}};
const Names<Scales> kScalesNames = {
    {"none", Scales::kNone}, {"fp32", Scales::kFloat32}, {"ue8m0", Scales::kUe8m0}};
const Names<hepQuantization_t> kQuantizationNames = {
    {"none", hepQuantizeNone}, {"fp32", hepQuantizeFloat32}, {"ue8m0", hepQuantizeUe8m0}};

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
  std::string text = is_quantized() ? name_of(kTypeNames, x_type()) + ">" : "";
  text += name_of(kTypeNames, type);
  return has_scales() ? text + "+" + name_of(kScalesNames, scales) : text;
}

}  // namespace bench
