// SPDX-License-Identifier: Apache-2.0
// The groups of this process, and what a fork and the process's exit do to them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "peers/group.h"

namespace hep {

// The group of a communicator, which the ranks of this process share. The first of them makes it,
// the last frees it.
//
// A forked child closes the connections that it inherits. A process that exits in good order leaves
// the communicators that it did not destroy.
std::shared_ptr<PeerGroup> join_group(uint64_t communicator, const std::vector<uint64_t>& processes,
                                      int rank);

}  // namespace hep
