// SPDX-License-Identifier: Apache-2.0
// What the contract demands of the arguments of update, dispatch and combine.
#pragma once

#include <hybridep.h>

#include "base/status.h"
#include "comm/routing.h"

namespace hep {

Status check_update(const hepRouting& routing, const void* indices, int64_t num_tokens, int top_k,
                    int32_t index_type);

// Check the arguments, and put the communicator's types in place of zeros.
Status resolve_dispatch(const hepRouting& routing, hepDispatchArgs_t* args);
Status resolve_combine(const hepRouting& routing, hepCombineArgs_t* args);

}  // namespace hep
