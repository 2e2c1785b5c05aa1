// SPDX-License-Identifier: Apache-2.0
// What the contract demands of the arguments of update, dispatch and combine.
#pragma once

#include <hybridep.h>

#include "base/status.h"
#include "config/lanes.h"
#include "protocol/routing_layout.h"

namespace hep {

// What the rules depend on, besides the arguments.
struct RoutingState {
  const hepConfig_t& config;  // of the communicator, resolved
  const Lane& lane;
  const RoutingLayout& layout;
  int num_tokens;    // of the latest update
  bool has_weights;  // a dispatch with weights followed it
};

Status check_update(const RoutingState& routing, const hepUpdate_t& update);

// Check the arguments, and put the communicator's values in place of zeros. Dense weights and
// gradients then stand in place of the others, too. A dispatch is one of num_tokens tokens.
Status resolve_dispatch(const RoutingState& routing, int64_t num_tokens, hepDispatchArgs_t* args);
Status resolve_combine(const RoutingState& routing, hepCombineArgs_t* args);

}  // namespace hep
