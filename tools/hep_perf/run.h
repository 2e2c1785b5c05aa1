// SPDX-License-Identifier: Apache-2.0
// A run from its options to its report.
#pragma once

#include "harness/world.h"
#include "options.h"

namespace perf {

// True if everything ran and was right. Throws std::runtime_error if something failed.
bool run(harness::World& world, Options options);

}  // namespace perf
