// SPDX-License-Identifier: Apache-2.0
// Failed waits in words.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <string>

#include "base/status.h"

namespace hep {

// "dispatch", for example.
const char* operation_name(int32_t operation);

// "lane 1" or "low-latency lane 1".
std::string lane_name(int32_t mode, int32_t number);

// "dispatch 7", and where there are several lanes to tell apart, "dispatch 7 of low-latency lane
// 1".
std::string operation_text(int32_t operation, uint64_t number, int32_t mode, int32_t lane);

// The sentence for a failed wait: "rank 1: dispatch 7 timed out waiting for rank 3 to ...". `cause`
// tells what has ended it, where that is not its own timeout: "rank 2 has left". Success if nothing
// failed.
Status failure_status(const hepFailure_t& failure, const std::string& cause = {});

}  // namespace hep
