// SPDX-License-Identifier: Apache-2.0
// The interface of a backend. Arguments have been read and checked against the contract before they
// arrive here. A backend checks only what it alone can know, such as where a pointer points.
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
#include "protocol/network_layout.h"
#include "protocol/routing_layout.h"
#include "protocol/step.h"

namespace hep {

// A lane as one rank sees it.
struct LaneContext {
  const Lane& lane;  // the communicator's; it outlives the backend
  int rank;
  // [R] the lane's part of each rank's window, as this rank maps it; zero at first. NULL for ranks
  // of other domains.
  std::vector<void*> windows;
};

// A communicator hands this to its backend.
struct BackendContext {
  int rank;
  int device;  // CUDA ordinal; -1 on the host
  int sms;     // of the device that the rank may choose from; 0 on the host
  int timeout_ms;
  std::vector<LaneContext> lanes;
  const Registrations* registrations = nullptr;  // of this rank; they come and go
  std::function<void()> wake_network;            // called when there are writes for the proxy
};

// The address at which this rank sees memory that a rank has registered.
struct RegisteredAddress {
  int slot;  // among that rank's registrations
  int rank;
  void* address;
};

// Finds out whether rows lie in the heap of this rank's window, where peers read them in place.
// Rows that begin there must end there. `name` is the argument's, for the error.
Status find_rows_in_heap(const LaneContext& context, const char* name, const void* rows,
                         int64_t num_rows, int64_t row_bytes, bool* in_heap);

// Does the same for the expert outputs of a combine, whose type is the call's.
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

// A routing is created for this.
struct RoutingRequest {
  int alignment;
  RoutingLayout layout;
  NetworkRoutingLayout network;  // follows the layout; empty with one domain
  void* memory;                  // the caller's, or NULL

  uint64_t bytes() const { return network.end; }
};

// The resolved arguments of a dispatch. They are a copy, because the caller's structs live no
// longer than the call of the first half.
struct DispatchRequest {
  hepDispatchArgs_t args;      // its `update` is NULL
  std::optional<TopK> update;  // the dispatch begins with it
};

// The routing of one batch on one backend.
class BackendRouting {
 public:
  virtual ~BackendRouting() = default;

  virtual Status update(const TopK& choice, hepStream_t stream) = 0;
  // `batch` belongs to the request's update, or to the update that was called last.
  virtual Status dispatch(const DispatchRequest& request, const Batch& batch, Step step,
                          hepStream_t stream) = 0;
  virtual Status combine(const hepCombineArgs_t& args, const Batch& batch, Step step,
                         hepStream_t stream) = 0;

  // Ask after one of these calls has failed. Returns whether it had enqueued a part that peers see.
  // Such a call cannot be repeated.
  virtual bool has_begun() const { return false; }

  // Waits for the stream. Fills the numbers and, if it is not NULL, tokens_per_expert.
  virtual Status query(hepRoutingCounts_t* counts, hepStream_t stream) = 0;

  // Returns the memory of RoutingLayout, which the kernels read and write.
  virtual const void* memory() const = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // Adds to a plan its lanes, and the work that the proxy does for it. Called only with several
  // domains. The proxy ends before the backend.
  virtual void join_network(ProxyPlan*) {}

  // `lane` is an index of BackendContext::lanes. Routings of different lanes may be used by
  // different threads at once.
  virtual Status create_routing(int lane, const RoutingRequest& request,
                                std::unique_ptr<BackendRouting>* routing) = 0;

  // From now on operations find registered memory at these addresses. Slots in use keep their
  // addresses.
  virtual Status set_registered(const std::vector<RegisteredAddress>& addresses) = 0;

  // Ends every wait of this rank with `result`, now and later, unless its signal has arrived. The
  // first call counts. Any thread may call it.
  virtual void stop(hepResult_t result) noexcept = 0;

  // Ends every wait for this peer with hepErrorPeerLost, now and later, unless its signal has
  // arrived: the peer will signal nothing more. Any thread may call it.
  virtual void peer_left(int peer) noexcept = 0;

  void abort() noexcept { stop(hepErrorAborted); }

  // Returns the record of the first wait that failed. After a stop that ended no wait, the record
  // names no operation. Without a failure its result is hepSuccess. Any thread may call it.
  virtual hepFailure_t failure() const = 0;

  // Returns hepErrorCuda with the reason once the device has died. Any thread may call it.
  virtual Status check_device() const { return Status(); }

  // Returns the first expert id that was out of range. With k of -1 it is the first token whose map
  // selects more experts than top_k, and `value` is their number. Any thread may call it.
  struct BadIndex {
    bool found;
    int64_t token, k, value;
  };
  virtual BadIndex bad_index() const = 0;

  // Returns the first dispatch with hepOverflowError whose rows did not fit. Any thread may call
  // it.
  struct Overflow {
    bool found;
    int32_t mode, lane;  // as in hepFailure_t
    uint64_t number;     // of the dispatch on its lane, from 1
    int64_t needed, capacity;
  };
  virtual Overflow overflow() const = 0;
};

Status create_host_backend(BackendContext context, std::unique_ptr<Backend>* backend);

// The following return hepErrorUnsupported if the library was built without CUDA.
Status create_cuda_backend(BackendContext context, std::unique_ptr<Backend>* backend);

// Finds the calling thread's current device. It must be one that the cuda backend can use.
Status find_cuda_device(int* device);

// Makes a device the calling thread's current one.
Status bind_cuda_device(int device);

}  // namespace hep
