// SPDX-License-Identifier: Apache-2.0
#include "protocol/call_summary.h"

#include "protocol/data_type.h"

namespace hep {
namespace {

int field(uint64_t summary, int bit, int num_bits) {
  return static_cast<int>(summary >> bit & ((uint64_t{1} << num_bits) - 1));
}

const char* layout_name(int layout) {
  switch (layout) {
    case hepLayoutFlat: return "flat";
    case hepLayoutExpertMajor: return "expert-major";
    case hepLayoutExpertPadded: return "expert-padded";
    default: return "unknown";
  }
}

const char* name_of_type(int type) {
  const char* const name = type_name(type);
  return name != nullptr ? name : "unknown";
}

const char* quantization_name(int quantize) {
  switch (quantize) {
    case hepQuantizeNone: return "none";
    case hepQuantizeFloat32: return "float32";
    case hepQuantizeUe8m0: return "ue8m0";
    default: return "unknown";
  }
}

const char* weight_mode_name(int mode) {
  switch (mode) {
    case hepWeightsNone: return "none";
    case hepWeightsDispatched: return "dispatched";
    case hepWeightsRow: return "row";
    default: return "unknown";
  }
}

// What a summary says of an optional array.
std::string describe_given(const char* name, uint64_t summary, int bit) {
  switch (given_in(summary, bit)) {
    case Given::kNo: return std::string(", without ") + name;
    case Given::kYes: return std::string(", with ") + name;
    default: return "";
  }
}

}  // namespace

std::string describe_call(int32_t operation, uint64_t summary) {
  std::string text = std::string("layout ") + layout_name(field(summary, 0, 2)) + ", type " +
                     name_of_type(field(summary, kTypeBit, 4)) + ", hidden " +
                     std::to_string(field(summary, kHiddenBit, 16) + 1);
  if (operation == hepOperationDispatch)
    text += std::string(", quantize ") + quantization_name(field(summary, kSecondTypeBit, 4)) +
            describe_given("weights", summary, kFirstGivenBit) +
            describe_given("scales", summary, kSecondGivenBit);
  else
    text += std::string(", partial type ") + name_of_type(field(summary, kSecondTypeBit, 4)) +
            ", weight mode " + weight_mode_name(field(summary, kWeightModeBit, 2)) +
            describe_given("gradients", summary, kFirstGivenBit);
  return text + ", the routing of update " + std::to_string(summary >> 32);
}

std::string describe_batch(uint64_t batch) {
  return std::to_string(batch >> 32) + " tokens and top_k " +
         std::to_string(static_cast<uint32_t>(batch));
}

}  // namespace hep
