// SPDX-License-Identifier: Apache-2.0
// Turns a failed call of the library into an exception with its sentence.
#pragma once

#include <hybridep.h>

#include <stdexcept>
#include <string>

namespace perf {

inline void require(hepResult_t result, const char* call) {
  if (result == hepSuccess) return;
  throw std::runtime_error(std::string(call) + ": " + hepGetErrorString(result) + ": " +
                           hepGetLastError());
}

}  // namespace perf
