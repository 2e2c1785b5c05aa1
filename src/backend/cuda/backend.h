// SPDX-License-Identifier: Apache-2.0
// The cuda backend: checks where pointers point, and launches.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/kernel_args.h"
#include "backend/cuda/plan.h"
#include "base/thread_annotations.h"
#include "gpu/context_watch.h"
#include "gpu/device_memory.h"
#include "gpu/enqueued_work.h"

namespace hep {

// A lane with the work that it has enqueued and its device memory.
struct CudaLane {
  CudaLane(const LaneContext& seen, const Gpu& gpu)
      : context(seen), plan(make_plan(seen.lane, gpu)) {}

  const LaneContext& context;
  const Plan plan;
  KernelContext kernel{};
  EnqueuedWork work;

  Mutex mutex;
  std::vector<std::unique_ptr<DeviceMemory>> spare_routing_memory HEP_GUARDED_BY(mutex);
  size_t num_routing_memories HEP_GUARDED_BY(mutex) = 0;  // spare or not
};

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(BackendContext context);

  // Stops this rank's operations, waits for their end, then frees.
  ~CudaBackend() override;

  Status start();

  Status create_routing(int lane, const RoutingRequest& request,
                        std::unique_ptr<BackendRouting>* routing) override;
  Status set_registered(const std::vector<RegisteredAddress>& addresses) override;
  void stop(hepResult_t result) noexcept override;
  void peer_left(int peer) noexcept override;
  hepFailure_t failure() const override;
  Status check_device() const override { return watch_.status(); }
  BadIndex bad_index() const override;
  Overflow overflow() const override;

  int device() const { return device_; }
  const Registrations& registrations() const { return registrations_; }

  // Memory of routings. The memory of a destroyed routing serves the next routing of its lane.
  // Operations may still use it then; the next routing's operations follow them on the device.
  Status take_routing_memory(CudaLane& lane, std::unique_ptr<DeviceMemory>* memory);
  void return_routing_memory(CudaLane& lane, std::unique_ptr<DeviceMemory> memory);

 private:
  Status allocate();
  void start_lane(CudaLane& lane);
  void wait_for_own_work();

  HostState* host_state() const { return static_cast<HostState*>(host_state_.get()); }

  const int rank_, device_;
  const int timeout_ms_;
  const Registrations& registrations_;       // of this rank
  const std::vector<LaneContext> contexts_;  // of the lanes
  std::shared_ptr<DeviceContext> context_;
  DeviceMemory scratch_;            // for all lanes, one after the other
  uint64_t registered_offset_ = 0;  // of KernelContext::registered
  MappedMemory host_state_;
  std::vector<std::unique_ptr<CudaLane>> lanes_;
  ContextWatch watch_;

  mutable Mutex mutex_;
  hepResult_t stop_result_ HEP_GUARDED_BY(mutex_) = hepSuccess;  // what host_state_ says
};

}  // namespace hep
