// SPDX-License-Identifier: Apache-2.0
// Failed waits in words.
#pragma once

#include <hybridep.h>

#include <string>

#include "status.h"

namespace hep {

// The sentence for a failed wait: "rank 1: dispatch 7 timed out waiting for rank 3 to ...". `cause`
// tells what has ended it, where that is not its own timeout: "rank 2 has left". Success if nothing
// failed.
Status failure_status(const hepFailure_t& failure, const std::string& cause = {});

}  // namespace hep
