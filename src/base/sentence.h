// SPDX-License-Identifier: Apache-2.0
// Parts of the sentences of errors.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace hep {

// Returns for example "rank 3", "ranks 1, 2" or "ranks 0-62, 70".
std::string rank_list(std::vector<int> ranks);

// Copies a sentence to `size` bytes. One that does not fit ends with "...".
void copy_sentence(const char* sentence, char* out, size_t size) noexcept;

}  // namespace hep
