// SPDX-License-Identifier: Apache-2.0
// How a rank maps what its peers have described by handles: in this process the memory itself, in
// others what was exported.
#pragma once

#include <memory>
#include <vector>

#include "base/deadline.h"
#include "base/status.h"
#include "memory/descriptor_channel.h"
#include "memory/kind.h"

namespace hep {

// Maps for `device` of this process what the peers offer. Collective; `handles` [R] are those of
// all ranks. (*mappings)[R] stay NULL for this rank, and for peers whose handles have 0 bytes.
// Every rank tries all its peers, also after a failure, so no rank waits longer than it must.
// `channel` is this rank's; it may be NULL where no handle is of a kind that passes descriptors.
Status map_peers(int device, int rank, const std::vector<WindowHandle>& handles,
                 DescriptorChannel* channel, Deadline deadline,
                 std::vector<std::unique_ptr<Mapping>>* mappings);

}  // namespace hep
