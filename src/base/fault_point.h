// SPDX-License-Identifier: Apache-2.0
// Places at which tests of the creation of communicators make a rank fail. The library never does.
#pragma once

#include "base/status.h"

namespace hep {

// NULL but in those tests, which are linked with the library's objects: the symbol is not exported.
using FaultHook = Status (*)(const char* step, int rank);
inline FaultHook fault_hook = nullptr;

// Stands where a step has done its work, so that what it made has to be freed again.
inline Status fault_point(const char* step, int rank) {
  return fault_hook == nullptr ? Status() : fault_hook(step, rank);
}

}  // namespace hep
