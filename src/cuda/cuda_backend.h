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

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(const BackendContext& context) : context_(context) {}

  // Ends what still runs, then frees.
  ~CudaBackend() override;

  Status start();

  Status create_routing(int alignment, std::unique_ptr<BackendRouting>* routing) override;
  Status register_memory(void* pointer, size_t bytes) override;
  Status deregister_memory(void* pointer) override;
  void stop(hepResult_t result) override;
  void peer_left(int peer) override;
  hepFailure_t failure() const override;
  BadIndex bad_index() const override;
  Overflow overflow() const override;

  const BackendContext& context() const { return context_; }
  const KernelContext& kernel_context() const { return kernel_context_; }

  // Memory of routings. A destroyed routing's serves the next one: freeing it would wait for the
  // device, and the operations of a communicator follow each other on the device anyway.
  Status take_routing_memory(std::unique_ptr<DeviceMemory>* memory);
  void return_routing_memory(std::unique_ptr<DeviceMemory> memory);

 private:
  HostState* host_state() const { return static_cast<HostState*>(host_state_.get()); }

  const BackendContext context_;
  DeviceMemory device_state_;
  DeviceMemory block_counts_;
  MappedMemory host_state_;
  KernelContext kernel_context_{};

  mutable std::mutex mutex_;
  hepResult_t stop_result_ = hepSuccess;  // what host_state_ says; guarded by mutex_
  std::vector<std::unique_ptr<DeviceMemory>> spare_routing_memory_;
  size_t num_routing_memories_ = 0;  // spare or not
};

}  // namespace hep
