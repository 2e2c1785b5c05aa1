// SPDX-License-Identifier: Apache-2.0
// The rules for ranks and for their number, each with one wording.
#pragma once

#include "base/status.h"

namespace hep {

Status check_num_ranks(int num_ranks);

// Checks both numbers.
Status check_rank(int rank, int num_ranks);

}  // namespace hep
