// SPDX-License-Identifier: Apache-2.0
// What all ranks must call alike, in one word: each rank compares its own with its peers'.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <string>

#include "protocol/host_device.h"

namespace hep {

// Whether a rank gives an optional array that all ranks give or none. A rank that has nothing to
// put into it goes with either.
enum class Given : uint64_t { kNothingToGive = 0, kNo = 1, kYes = 2 };

HEP_HOST_DEVICE constexpr Given given(bool has_entries, bool is_given) {
  if (!has_entries) return Given::kNothingToGive;
  return is_given ? Given::kYes : Given::kNo;
}

// Bits of a summary:
//
//            dispatch       combine
//    0-1     layout         layout
//    2-3                    weight mode
//    4-7     type           type
//    8-11    quantisation   partial type
//   12-13    weights        gradients      Given
//   14-15    scales                        Given
//   16-31    hidden - 1     hidden - 1
//   32-63    the update of the routing
constexpr int kWeightModeBit = 2, kTypeBit = 4, kSecondTypeBit = 8;
constexpr int kFirstGivenBit = 12, kSecondGivenBit = 14, kHiddenBit = 16;
constexpr int kMaxHidden = 1 << 16;

HEP_HOST_DEVICE constexpr uint64_t hidden_in_summary(int64_t hidden) {
  return (static_cast<uint64_t>(hidden - 1) & (kMaxHidden - 1)) << kHiddenBit;
}

// `call`: of a dispatch, as the caller gave it or as kernels take it.
template <typename DispatchCall>
HEP_HOST_DEVICE constexpr uint64_t summary_of(const DispatchCall& call, int num_tokens,
                                              uint64_t update) {
  return update << 32 | hidden_in_summary(call.hidden) |
         static_cast<uint64_t>(given(num_tokens > 0, call.scales != nullptr)) << kSecondGivenBit |
         static_cast<uint64_t>(given(num_tokens > 0, call.weights != nullptr)) << kFirstGivenBit |
         static_cast<uint64_t>(call.quantize) << kSecondTypeBit |
         static_cast<uint64_t>(call.type) << kTypeBit | static_cast<uint64_t>(call.layout);
}

// The same of a combine. `num_rows`: flat rows that this rank has received.
template <typename CombineCall>
HEP_HOST_DEVICE constexpr uint64_t summary_of(const CombineCall& call, int num_tokens,
                                              int64_t num_rows, uint64_t update) {
  const bool has_rows = num_rows > 0 && call.capacity > 0;
  const bool gives = num_tokens > 0 ? call.gradients != nullptr : call.row_gradients != nullptr;
  return update << 32 | hidden_in_summary(call.hidden) |
         static_cast<uint64_t>(given(num_tokens > 0 || has_rows, gives)) << kFirstGivenBit |
         static_cast<uint64_t>(call.partial_type) << kSecondTypeBit |
         static_cast<uint64_t>(call.type) << kTypeBit |
         static_cast<uint64_t>(call.weight_mode) << kWeightModeBit |
         static_cast<uint64_t>(call.layout);
}

HEP_HOST_DEVICE constexpr Given given_in(uint64_t summary, int bit) {
  return static_cast<Given>(summary >> bit & 3);
}

HEP_HOST_DEVICE constexpr bool given_alike(Given a, Given b) {
  return a == b || a == Given::kNothingToGive || b == Given::kNothingToGive;
}

// Whether two ranks have called alike.
HEP_HOST_DEVICE constexpr bool alike(uint64_t a, uint64_t b) {
  constexpr uint64_t kGivenBits = uint64_t{15} << kFirstGivenBit;  // both
  return (a & ~kGivenBits) == (b & ~kGivenBits) &&
         given_alike(given_in(a, kFirstGivenBit), given_in(b, kFirstGivenBit)) &&
         given_alike(given_in(a, kSecondGivenBit), given_in(b, kSecondGivenBit));
}

// T and K of a batch in one word, for failure records; 0: there is none.
HEP_HOST_DEVICE constexpr uint64_t batch_word(int num_tokens, int top_k) {
  return static_cast<uint64_t>(num_tokens) << 32 | static_cast<uint32_t>(top_k);
}

// A summary in words, and a batch.
std::string describe_call(int32_t operation, uint64_t summary);
std::string describe_batch(uint64_t batch);

}  // namespace hep
