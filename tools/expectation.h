// SPDX-License-Identifier: Apache-2.0
// What the plan's model expects of the operations of a job, as a table.
#pragma once

#include <hybridep.h>

#include "backend/cuda/profile.h"

namespace hep {

// Of a resolved config in BF16, and the same in FP8 with scales. `sms` stand beside what the plan
// chooses.
void print_expectation(const hepConfig_t& config, int num_ranks, const Profile& profile, int sms);

}  // namespace hep
