// SPDX-License-Identifier: Apache-2.0
// What a lane has put on the device, so that its end can be waited for, and nothing else's.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "base/status.h"
#include "gpu/context.h"

namespace hep {

// The operations of a lane follow each other on the device, whatever their streams: the end of the latest
// is the end of all. Used by one thread at a time.
class EnqueuedWork {
 public:
  EnqueuedWork() = default;
  EnqueuedWork(const EnqueuedWork&) = delete;
  EnqueuedWork& operator=(const EnqueuedWork&) = delete;
  ~EnqueuedWork();

  // In this context, which is current.
  Status start(const std::shared_ptr<DeviceContext>& context);

  // Takes note of what a call has just put on the stream, which need not live on.
  void note(cudaStream_t stream);

  // Waits for all that was noted. False if some of it may still run: what was captured runs whenever the
  // caller launches its graph.
  bool wait() const;

 private:
  std::shared_ptr<DeviceContext> context_;
  cudaEvent_t latest_ = nullptr;
  bool missed_ = false;  // something that latest_ does not stand for
};

// Notes what is put on the stream as long as it lives, also by a call that fails on the way.
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
