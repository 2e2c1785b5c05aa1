// SPDX-License-Identifier: Apache-2.0
// The communicator: what one rank's calls ask of it.
#pragma once

#include <hybridep.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "base/handles.h"
#include "base/status.h"
#include "comm/parts.h"
#include "config/lanes.h"

struct hepComm {
 public:
  explicit hepComm(std::unique_ptr<hep::CommParts> parts);

  int rank() const { return parts_->rank; }
  int num_ranks() const { return parts_->num_ranks; }
  int device() const { return parts_->device; }                 // -1 on the host
  const hepConfig_t& config() const { return parts_->config; }  // resolved
  const hep::Lane& lane(int index) const { return parts_->lanes[index]; }
  hepLimits_t limits() const;
  void* handle() const { return handle_.value(); }

  // Returns the error of the first failed wait or of an abort, if any. Operations return it at
  // once.
  hep::Status check() const { return parts_->health->check(); }
  // Returns the same. Without a failure, reports an index that is not an expert's, or rows that did
  // not fit.
  hep::Status async_error() const;
  hepFailure_t failure() const { return parts_->health->failure(); }
  void abort() { parts_->health->abort(); }
  // Fails the communicator because an operation of this rank has failed on the way.
  void fail(const hep::Status& status);

  // Memory of the heap.
  hep::Status allocate(size_t bytes, void** pointer);
  hep::Status free(void* pointer);

  // Collective.
  hep::Status register_memory(void* pointer, size_t bytes);
  hep::Status deregister_memory(void* pointer);

  // Finds the lane with this number among those of a mode.
  hep::Status find_lane(int32_t mode, int32_t number, int* index) const;
  hep::Status create_routing(int lane, const hep::RoutingRequest& request,
                             std::unique_ptr<hep::BackendRouting>* routing);

  // Every routing says when it comes and goes. A communicator with routings is not destroyed.
  void add_routing() { ++num_routings_; }
  void remove_routing(int lane, const hepRouting* routing);
  hep::Status check_without_routings() const;

  // The routing whose operation on a lane was sent and not yet received; NULL: none. One thread at
  // a time uses a lane.
  const hepRouting* open_routing(int lane) const { return open_[lane]; }
  void open(int lane, const hepRouting* routing) { open_[lane] = routing; }
  void close(int lane) { open_[lane] = nullptr; }

 private:
  void* heap_address() const;

  const std::unique_ptr<hep::CommParts> parts_;
  std::atomic<int> num_routings_{0};
  std::vector<const hepRouting*> open_;  // by lane
  const hep::LiveHandle handle_{hep::HandleKind::kComm, this};
};

namespace hep {

// Turns a caller's handle into the communicator. Refuses NULL, and a handle of no communicator.
Status check_comm(hepComm_t& comm);

inline hepComm_t release_to_caller(std::unique_ptr<hepComm> comm) {
  return static_cast<hepComm_t>(comm.release()->handle());
}

// Ends a communicator that has no routings.
Status destroy_comm(hepComm_t comm);

}  // namespace hep
