// SPDX-License-Identifier: Apache-2.0
// Failed waits in words.
#pragma once

#include <hybridep.h>

#include "status.h"

namespace hep {

// The sentence for a failed wait: "rank 1: dispatch 7 timed out waiting for rank 3 to ...".
// Success if nothing failed.
Status failure_status(const hepFailure_t& failure);

}  // namespace hep
