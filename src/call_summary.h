// SPDX-License-Identifier: Apache-2.0
// What all ranks must call alike, in one word: each rank compares its own with its peers'.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <string>

#include "layout.h"

namespace hep {

// Fields of 8 bits: layout, type, and then quantisation, or partial type and weight mode. The upper half
// is the number of the routing's update.
HEP_HOST_DEVICE constexpr uint64_t summary_of(const hepDispatchArgs_t& call, uint64_t update) {
  return update << 32 | static_cast<uint64_t>(call.quantize) << 16 |
         static_cast<uint64_t>(call.type) << 8 | static_cast<uint64_t>(call.layout);
}

HEP_HOST_DEVICE constexpr uint64_t summary_of(const hepCombineArgs_t& call, uint64_t update) {
  return update << 32 | static_cast<uint64_t>(call.weight_mode) << 24 |
         static_cast<uint64_t>(call.partial_type) << 16 | static_cast<uint64_t>(call.type) << 8 |
         static_cast<uint64_t>(call.layout);
}

// A summary in words.
std::string describe_call(int32_t operation, uint64_t summary);

}  // namespace hep
