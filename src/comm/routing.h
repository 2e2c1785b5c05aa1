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
#include "comm/routing_memory.h"
#include "config/arguments.h"
#include "protocol/routing_layout.h"

// The arguments of its functions are the caller's structs as they came.
struct hepRouting {
 public:
  static hep::Status create(hepComm& comm, const hepRoutingConfig_t* config,
                            std::unique_ptr<hepRouting>* out);
  // Returns the bytes of memory that a routing of this config takes.
  static hep::Status memory_bytes(const hepComm& comm, const hepRoutingConfig_t* config,
                                  uint64_t* bytes);
  hepRouting(hepComm& comm, int lane, const hep::RoutingLayout& layout,
             std::unique_ptr<hep::BackendRouting> backend);
  ~hepRouting();

  void* handle() const { return handle_.value(); }

  hep::Status update(const hepUpdate_t* update, hepStream_t stream);

  // The whole operation, or its first half.
  hep::Status dispatch(const hepDispatchArgs_t* args, hep::Step step, hepStream_t stream);
  hep::Status combine(const hepCombineArgs_t* args, hep::Step step, hepStream_t stream);
  // The second half of a dispatch or combine.
  hep::Status receive(hepOperation_t operation, hepStream_t stream);

  hep::Status query(hepRoutingCounts_t* counts, hepStream_t stream);
  hep::Status view(hepRoutingView_t* view) const;

  // Refuses to end a routing whose operation is between its halves, unless the communicator failed.
  hep::Status check_may_end() const;

 private:
  const hep::Lane& lane() const { return comm_.lane(lane_); }
  hep::RoutingState state() const;

  hep::Status check_not_open(const char* call) const;
  hep::Status check_updated(const char* call) const;
  hep::Status check_has_halves(const char* call) const;
  hep::Status check_ready(const char* call, hep::Step step) const;

  hep::Status read_update(const hepUpdate_t* theirs, hep::TopK* choice) const;
  hep::Status read_dispatch(const hepDispatchArgs_t* theirs, hep::DispatchRequest* request) const;
  hep::Status outcome(const hep::Status& status);
  void note_update(const hep::Batch& batch);
  void open(hepOperation_t operation);
  void close();

  hepComm& comm_;
  const int lane_;
  const hep::RoutingLayout layout_;
  hep::RoutingMemory memory_;
  std::unique_ptr<hep::BackendRouting> backend_;

  // Of the latest update.
  bool updated_ = false;
  bool has_weights_ = false;  // a dispatch with weights followed it
  hep::Batch batch_{0, 0};

  // The operation that was sent and not yet received, and its resolved arguments.
  hepOperation_t open_ = hepOperationNone;
  hep::DispatchRequest dispatch_request_{};
  hepCombineArgs_t combine_args_{};

  const hep::LiveHandle handle_{hep::HandleKind::kRouting, this};
};

namespace hep {

// Turns a caller's handle into the routing. Refuses NULL, and a handle of no routing.
Status check_routing(hepRouting_t& routing);

inline hepRouting_t release_to_caller(std::unique_ptr<hepRouting> routing) {
  return static_cast<hepRouting_t>(routing.release()->handle());
}

Status destroy_routing(hepRouting_t routing);

}  // namespace hep
