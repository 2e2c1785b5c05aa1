// SPDX-License-Identifier: Apache-2.0
// The cuda backend: checks where pointers point, and launches.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "backend.h"
#include "cuda/device_memory.h"
#include "cuda/kernel_args.h"

namespace hep {

// A lane and its device memory.
struct CudaLane {
  explicit CudaLane(const LaneContext& lane) : context(lane) {}

  const LaneContext context;
  DeviceMemory state, block_counts;
  KernelContext kernel{};

  // Guarded by the backend.
  std::vector<std::unique_ptr<DeviceMemory>> spare_routing_memory;
  size_t num_routing_memories = 0;  // spare or not
};

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(const BackendContext& context);

  // Ends what still runs, then frees.
  ~CudaBackend() override;

  Status start();

  Status create_routing(int lane, int alignment, std::unique_ptr<BackendRouting>* routing) override;
  Status set_registered(const std::vector<RegisteredAddress>& addresses) override;
  void stop(hepResult_t result) override;
  void peer_left(int peer) override;
  hepFailure_t failure() const override;
  BadIndex bad_index() const override;
  Overflow overflow() const override;

  int device() const { return device_; }
  const Registrations& registrations() const { return registrations_; }

  // Memory of routings. A destroyed routing's serves the next one of its lane: freeing it would wait for
  // the device, and the operations of a lane follow each other on the device anyway.
  Status take_routing_memory(CudaLane& lane, std::unique_ptr<DeviceMemory>* memory);
  void return_routing_memory(CudaLane& lane, std::unique_ptr<DeviceMemory> memory);

 private:
  Status start_lane(CudaLane& lane);

  HostState* host_state() const { return static_cast<HostState*>(host_state_.get()); }

  const int rank_, device_;
  const int timeout_ms_;
  const Registrations& registrations_;  // of this rank
  DeviceMemory firsts_;
  DeviceMemory registered_;  // KernelContext::registered
  MappedMemory host_state_;
  std::vector<std::unique_ptr<CudaLane>> lanes_;

  mutable std::mutex mutex_;
  hepResult_t stop_result_ = hepSuccess;  // what host_state_ says; guarded by mutex_
};

}  // namespace hep
