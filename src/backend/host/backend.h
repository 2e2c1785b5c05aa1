// SPDX-License-Identifier: Apache-2.0
// The host backend: the protocol of src/protocol/ over windows in plain memory. A call does its
// work before it returns, so every rank has a thread or process of its own.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/host/operation.h"
#include "backend/host/relay.h"
#include "backend/host/row_arithmetic.h"
#include "backend/host/wait.h"
#include "base/status.h"
#include "base/thread_annotations.h"

namespace hep {

// A lane, which one thread at a time uses.
struct HostLane {
  const LaneContext& context;
  std::unique_ptr<Rail> rail;  // NULL with one domain, as the next
  std::unique_ptr<RelayStation> relays;
  uint64_t epochs[hepOperationCombine + 1] = {};  // latest operation of each kind
};

class HostBackend final : public Backend {
 public:
  HostBackend(BackendContext context, const RowArithmetic& arithmetic);

  Status create_routing(int lane, const RoutingRequest& request,
                        std::unique_ptr<BackendRouting>* routing) override;
  void join_network(ProxyPlan* plan) override;
  // Peers cannot map memory that was not made for it: tokens there are copied.
  Status set_registered(const std::vector<RegisteredAddress>&) override { return {}; }
  void stop(hepResult_t result) noexcept override { waiter_.stop(result); }
  void peer_left(int peer) noexcept override { waiter_.peer_left(peer); }
  hepFailure_t failure() const override { return waiter_.failure(); }
  BadIndex bad_index() const override;
  Overflow overflow() const override;

  const RowArithmetic& arithmetic() const { return arithmetic_; }

  // Refuses any stream: there is none on the host.
  Status check_stream(hepStream_t stream) const;

  // Fails once a wait has failed or stop() was called.
  Status check_alive() const { return waiter_.check(); }

  // Starts the next operation of a kind on a lane, or for its second half takes up the one that has
  // been started; check_alive comes before it.
  Operation start(HostLane& lane, hepOperation_t kind, Step step);

  // Keep the first.
  void note_bad_index(int64_t token, int64_t k, int64_t value);
  void note_overflow(const Overflow& overflow);

 private:
  const int rank_;
  const std::vector<LaneContext> contexts_;  // of the lanes
  const RowArithmetic& arithmetic_;
  Waiter waiter_;
  std::vector<HostLane> lanes_;
  mutable Mutex mutex_;
  BadIndex bad_index_ HEP_GUARDED_BY(mutex_){};
  Overflow overflow_ HEP_GUARDED_BY(mutex_){};
};

}  // namespace hep
