// SPDX-License-Identifier: Apache-2.0
// The routing of one batch: checks what a caller asks of it against the contract, then hands it to
// the backend.
#pragma once

#include <hybridep.h>

#include <memory>

#include "backend/backend.h"
#include "base/handles.h"
#include "base/status.h"
#include "comm/comm.h"

struct hepRouting {
  hepRouting(hepComm* comm, int warp_lane);
  ~hepRouting();

  const hep::Lane& lane() const { return comm->lanes[warp_lane]; }

  hepComm* const comm;
  const int warp_lane;
  std::unique_ptr<hep::BackendRouting> backend;

  // Of the latest update.
  bool updated = false;
  bool has_weights = false;  // a dispatch with weights followed it
  hep::Batch batch{0, 0};

  // An operation whose first half was issued and whose second was not, and its resolved arguments.
  hepOperation_t split = hepOperationNone;
  hep::DispatchRequest dispatch_request{};
  hepCombineArgs_t combine_args{};

  const hep::LiveHandle handle{hep::HandleKind::kRouting, this};
};

namespace hep {

// Turns a caller's handle into the routing. Refuses NULL and what is no handle, or not any more.
Status check_routing(hepRouting_t& routing);

inline hepRouting_t release_to_caller(std::unique_ptr<hepRouting> routing) {
  return static_cast<hepRouting_t>(routing.release()->handle.value());
}

Status create_routing(hepComm_t comm, const hepRoutingConfig_t* config,
                      std::unique_ptr<hepRouting>* out);
Status destroy_routing(hepRouting_t routing);
Status update_routing(hepRouting_t routing, const hepUpdate_t* update, hepStream_t stream);

// Both halves, or the first.
Status dispatch(hepRouting_t routing, const hepDispatchArgs_t* args, Step step, hepStream_t stream);
Status combine(hepRouting_t routing, const hepCombineArgs_t* args, Step step, hepStream_t stream);
// The second half of a dispatch or combine.
Status receive(hepRouting_t routing, hepOperation_t operation, hepStream_t stream);

Status query_routing(hepRouting_t routing, hepRoutingCounts_t* counts, hepStream_t stream);
Status view_routing(hepRouting_t routing, hepRoutingView_t* view);

}  // namespace hep
