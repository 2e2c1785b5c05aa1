// SPDX-License-Identifier: Apache-2.0
// The rule for ranks and their number, in one wording.
#pragma once

#include "base/status.h"

namespace hep {

Status check_num_ranks(int num_ranks);

// Both numbers.
Status check_rank(int rank, int num_ranks);

}  // namespace hep
