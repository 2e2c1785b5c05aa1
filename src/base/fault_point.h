// SPDX-License-Identifier: Apache-2.0
// A fault point is a place where a test makes a rank fail: the creation of a communicator after
// each step, and the proxy of the network between two steps. In production none fails.
#pragma once

#include "base/status.h"

namespace hep {

// The hook of these tests, NULL otherwise. They link the library's objects, because the symbol is
// not exported.
using FaultHook = Status (*)(const char* step, int rank);
inline FaultHook fault_hook = nullptr;

// Stands behind the work of a step. A failure here shows that the step's resources are freed.
inline Status fault_point(const char* step, int rank) {
  return fault_hook == nullptr ? Status() : fault_hook(step, rank);
}

}  // namespace hep
