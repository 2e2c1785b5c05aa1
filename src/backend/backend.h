// SPDX-License-Identifier: Apache-2.0
// What a backend must do. Arguments have been read and checked against the contract before they
// arrive here; a backend checks only what it alone can know, such as where a pointer points.
#pragma once

#include <hybridep.h>

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "base/status.h"
#include "config/lanes.h"
#include "memory/registration.h"
#include "network/engine.h"
#include "protocol/step.h"

namespace hep {

// A lane as one rank sees it.
struct LaneContext {
  const Lane& lane;  // the communicator's; it outlives the backend
  int rank;
  std::vector<void*> windows;  // [R] the lane's parts of the windows as mapped by this rank;
                               // windows[rank] is its own; zero at first. NULL of other domains
};

// What a communicator hands to its backend.
struct BackendContext {
  int rank;
  int device;  // CUDA ordinal; -1 on the host
  int timeout_ms;
  std::vector<LaneContext> lanes;
  const Registrations* registrations = nullptr;  // of this rank, as they come and go
  std::function<void()> wake_network;  // called when there are writes for the proxy to make
};

// Where this rank sees memory that a rank has registered.
struct RegisteredAddress {
  int slot;  // among that rank's registrations
  int rank;
  void* address;
};

// Whether rows lie in the heap of this rank's window, where peers read them in place. Those that begin
// there must end there. `name` is the argument's, for the error.
Status find_rows_in_heap(const LaneContext& context, const char* name, const void* rows,
                         int64_t num_rows, int64_t row_bytes, bool* in_heap);

// The same of the expert outputs of a combine, whose type is the call's.
Status find_outputs_in_heap(const LaneContext& context, const hepCombineArgs_t& call,
                            bool* in_heap);

// Sizes of a batch: T and K.
struct Batch {
  int num_tokens, top_k;
};

// The router's choice for the tokens of this rank: the values of a hepUpdate_t.
struct TopK {
  const void* indices;
  Batch batch;
  int32_t index_type;  // hepIndexType_t
};

// What a dispatch is asked to do. It is a copy: the caller's structs live no longer than the call of the
// first half.
struct DispatchRequest {
  hepDispatchArgs_t args;      // whose `update` is NULL
  std::optional<TopK> update;  // with which the dispatch begins
};

// The routing of one batch on one backend.
class BackendRouting {
 public:
  virtual ~BackendRouting() = default;

  virtual Status update(const TopK& choice, hepStream_t stream) = 0;
  // `batch` is of the request's update, or of the latest that was called.
  virtual Status dispatch(const DispatchRequest& request, const Batch& batch, Step step,
                          hepStream_t stream) = 0;
  virtual Status combine(const hepCombineArgs_t& args, const Batch& batch, Step step,
                         hepStream_t stream) = 0;

  // Of the latest of these calls, which has failed: whether a part of it that peers see was enqueued
  // before, so that it cannot be made again.
  virtual bool has_begun() const { return false; }

  // Waits for the stream; fills the three numbers and, if not NULL, tokens_per_expert.
  virtual Status query(hepRoutingCounts_t* counts, hepStream_t stream) = 0;

  // Memory of RoutingLayout, which the kernels read and write.
  virtual const void* memory() const = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // Adds its lanes, and what the proxy is to do for it, to a plan. Only with several domains. The proxy
  // ends before the backend.
  virtual void join_network(ProxyPlan*) {}

  // `lane` is an index of BackendContext::lanes. Routings of different lanes may be used by different
  // threads at once.
  virtual Status create_routing(int lane, int alignment,
                                std::unique_ptr<BackendRouting>* routing) = 0;

  // Operations from now on find registered memory there. Slots that have addresses already, and are in
  // use, do not change.
  virtual Status set_registered(const std::vector<RegisteredAddress>& addresses) = 0;

  // Makes every wait of this rank, running or to come, end with `result`, unless what it waits for is
  // already there. The first call counts. From any thread.
  virtual void stop(hepResult_t result) noexcept = 0;

  // Makes waits for this peer end with hepErrorPeerLost, unless what they wait for is already there:
  // the peer will signal nothing more. From any thread.
  virtual void peer_left(int peer) noexcept = 0;

  void abort() noexcept { stop(hepErrorAborted); }

  // The first wait that failed; after a stop that ended none, a record without a wait; otherwise with
  // result hepSuccess. From any thread.
  virtual hepFailure_t failure() const = 0;

  // hepErrorCuda once the device can do nothing any more, with the reason. From any thread.
  virtual Status check_device() const { return Status(); }

  // The first expert id that was out of range; with k of -1, the first token whose map selects more
  // experts than top_k, and how many. From any thread.
  struct BadIndex {
    bool found;
    int64_t token, k, value;
  };
  virtual BadIndex bad_index() const = 0;

  // The first dispatch with hepOverflowError whose rows did not fit. From any thread.
  struct Overflow {
    bool found;
    int32_t mode, lane;  // as in hepFailure_t
    uint64_t number;     // of the dispatch on its lane, from 1
    int64_t needed, capacity;
  };
  virtual Overflow overflow() const = 0;
};

Status create_host_backend(BackendContext context, std::unique_ptr<Backend>* backend);

// The following return hepErrorUnsupported where the library was built without CUDA.
Status create_cuda_backend(BackendContext context, std::unique_ptr<Backend>* backend);

// The calling thread's current device, if it is one that the cuda backend can use.
Status find_cuda_device(int* device);

// Makes a device the calling thread's current one.
Status bind_cuda_device(int device);

}  // namespace hep
