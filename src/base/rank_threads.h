// SPDX-License-Identifier: Apache-2.0
// Runs several ranks of one process, each on a thread of its own.
#pragma once

#include <functional>
#include <vector>

#include "base/status.h"

namespace hep {

// Runs body(rank) for every rank and waits for all. An exception of a body becomes its status. A
// rank whose thread cannot be started gets hepErrorSystem; the others run without it.
std::vector<Status> run_rank_threads(int num_ranks, const std::function<Status(int)>& body);

// Returns the status that says most: the first of a rank that failed by itself; only if there is
// none, the first of a rank that missed a peer.
Status most_telling(const std::vector<Status>& statuses);

}  // namespace hep
