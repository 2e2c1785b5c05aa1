// SPDX-License-Identifier: Apache-2.0
// The routing of one batch: checks what a caller asks of it against the contract, then hands it to
// the backend.
#pragma once

#include <hybridep.h>

#include <memory>

#include "backend.h"
#include "comm.h"
#include "handles.h"
#include "status.h"

struct hepRouting {
  explicit hepRouting(hepComm* comm);
  ~hepRouting();

  hepComm* comm;
  std::unique_ptr<hep::BackendRouting> backend;

  // Of the latest update.
  bool updated = false;
  bool has_weights = false;  // a dispatch with weights followed it
  int num_tokens = 0;
  int top_k = 0;

  const hep::LiveHandle handle{hep::HandleKind::kRouting, this};
};

namespace hep {

// Refuses NULL and pointers to something else.
Status check_routing(hepRouting_t routing);

Status create_routing(hepComm_t comm, const hepRoutingConfig_t* config,
                      std::unique_ptr<hepRouting>* out);
Status update_routing(hepRouting_t routing, const void* indices, int64_t num_tokens, int top_k,
                      hepIndexType_t index_type, hepStream_t stream);
Status dispatch(hepRouting_t routing, const hepDispatchArgs_t* args, hepStream_t stream);
Status combine(hepRouting_t routing, const hepCombineArgs_t* args, hepStream_t stream);
Status query_routing(hepRouting_t routing, hepRoutingCounts_t* counts, hepStream_t stream);
Status view_routing(hepRouting_t routing, hepRoutingView_t* view);

}  // namespace hep
