// SPDX-License-Identifier: Apache-2.0
// Checks result codes that another process has sent as numbers.
#pragma once

#include <hybridep.h>

#include <cstdint>

namespace hep {

// Returns whether a number is one of hepResult_t. Only this function knows which code is the last.
constexpr bool is_result(int64_t code) { return code >= hepSuccess && code <= hepErrorNetwork; }

// Returns the result of a failure that a peer reports. A number that is no failure becomes
// hepErrorInternal, because the peer has failed all the same.
constexpr hepResult_t failure_of(int64_t code) {
  return is_result(code) && code != hepSuccess ? static_cast<hepResult_t>(code) : hepErrorInternal;
}

}  // namespace hep
