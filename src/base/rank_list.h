// SPDX-License-Identifier: Apache-2.0
// Names ranks in sentences.
#pragma once

#include <string>
#include <vector>

namespace hep {

// Returns for example "rank 3", "ranks 1, 2" or "ranks 0-62, 70".
std::string rank_list(std::vector<int> ranks);

}  // namespace hep
