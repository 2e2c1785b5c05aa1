// SPDX-License-Identifier: Apache-2.0
// Result codes that arrive as numbers from another process.
#pragma once

#include <hybridep.h>

#include <cstdint>

namespace hep {

// Whether a number is one of hepResult_t. The only place that knows which code is the last.
constexpr bool is_result(int64_t code) { return code >= hepSuccess && code <= hepErrorOverflow; }

// The result of a failure that a peer reports. A number that is no failure's becomes
// hepErrorInternal: the peer has failed all the same.
constexpr hepResult_t failure_of(int64_t code) {
  return is_result(code) && code != hepSuccess ? static_cast<hepResult_t>(code) : hepErrorInternal;
}

}  // namespace hep
