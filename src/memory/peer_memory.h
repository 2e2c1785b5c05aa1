// SPDX-License-Identifier: Apache-2.0
// Maps the memory that peers have described by handles. A peer in this process shares the memory
// itself, one in another process the export.
#pragma once

#include <memory>
#include <vector>

#include "base/deadline.h"
#include "base/status.h"
#include "memory/descriptor_channel.h"
#include "memory/kind.h"

namespace hep {

// Maps the memory of all peers for `device` of this process. Collective; `handles` [R] are those of
// all ranks, and one of zeros stands for a rank that takes no part. (*mappings)[R] stay NULL for
// this rank, and for peers whose handles have 0 bytes.
// Every rank tries all its peers, also after a failure, so no rank waits longer than it must.
// `channel` is this rank's; it may be NULL if no handle is of a kind that passes descriptors.
Status map_peers(int device, int rank, const std::vector<WindowHandle>& handles,
                 DescriptorChannel* channel, Deadline deadline,
                 std::vector<std::unique_ptr<Mapping>>* mappings);

}  // namespace hep
