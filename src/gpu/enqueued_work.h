// SPDX-License-Identifier: Apache-2.0
// The work that a lane has put on the device. A caller can wait for the end of this work alone.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "base/status.h"
#include "gpu/context.h"

namespace hep {

// The operations of a lane follow each other on the device, whatever their streams. Therefore the
// end of the latest is the end of all. One thread at a time may use this.
class EnqueuedWork {
 public:
  EnqueuedWork() = default;
  EnqueuedWork(const EnqueuedWork&) = delete;
  EnqueuedWork& operator=(const EnqueuedWork&) = delete;
  ~EnqueuedWork();

  // Prepares for work in this context, which is current.
  Status start(const std::shared_ptr<DeviceContext>& context);

  // Notes the work that a call has just put on the stream. The stream need not live on.
  void note(cudaStream_t stream);

  // Waits for all noted work. Returns false if some of it may still run: captured work runs
  // whenever the caller launches its graph.
  bool wait() const;

 private:
  std::shared_ptr<DeviceContext> context_;
  cudaEvent_t latest_ = nullptr;
  bool missed_ = false;  // there is work that latest_ does not cover
};

// Notes the work that is put on the stream while this object lives, also by a call that fails on
// the way.
class NotedWork {
 public:
  NotedWork(EnqueuedWork& work, cudaStream_t stream) : work_(work), stream_(stream) {}
  NotedWork(const NotedWork&) = delete;
  NotedWork& operator=(const NotedWork&) = delete;
  ~NotedWork() { work_.note(stream_); }

 private:
  EnqueuedWork& work_;
  const cudaStream_t stream_;
};

}  // namespace hep
