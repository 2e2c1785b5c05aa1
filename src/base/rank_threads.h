// SPDX-License-Identifier: Apache-2.0
// Several ranks of one process, each on a thread of its own.
#pragma once

#include <functional>
#include <vector>

#include "base/status.h"

namespace hep {

// Runs body(rank) for every rank and waits for all of them. What a body throws becomes its status; a
// rank whose thread cannot be started gets hepErrorSystem, and the others run without it.
std::vector<Status> run_rank_threads(int num_ranks, const std::function<Status(int)>& body);

// The status that says most: the first of a rank that failed by itself, before those of ranks that
// only missed a peer.
Status most_telling(const std::vector<Status>& statuses);

}  // namespace hep
