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
  Status register_memory(void* pointer, size_t bytes) override;
  Status deregister_memory(void* pointer) override;
  void stop(hepResult_t result) override;
  void peer_left(int peer) override;
  hepFailure_t failure() const override;
  BadIndex bad_index() const override;
  Overflow overflow() const override;

  int device() const { return device_; }

  // Memory of routings. A destroyed routing's serves the next one of its lane: freeing it would wait for
  // the device, and the operations of a lane follow each other on the device anyway.
  Status take_routing_memory(CudaLane& lane, std::unique_ptr<DeviceMemory>* memory);
  void return_routing_memory(CudaLane& lane, std::unique_ptr<DeviceMemory> memory);

 private:
  Status start_lane(CudaLane& lane);

  HostState* host_state() const { return static_cast<HostState*>(host_state_.get()); }

  const int rank_, device_;
  const int timeout_ms_;
  DeviceMemory firsts_;
  MappedMemory host_state_;
  std::vector<std::unique_ptr<CudaLane>> lanes_;

  mutable std::mutex mutex_;
  hepResult_t stop_result_ = hepSuccess;  // what host_state_ says; guarded by mutex_
};

}  // namespace hep
