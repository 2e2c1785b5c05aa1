// SPDX-License-Identifier: Apache-2.0
// Notices that the CUDA context of a rank has died. A fault of any kernel of the process ends it,
// and so does a reset of the device by the caller.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <thread>

#include "base/descriptor.h"
#include "base/status.h"
#include "gpu/context.h"

namespace hep {

// The watch has a thread of its own. A call of CUDA may wait for another thread's call, which may
// wait for a peer; the thread that listens to the peers must not wait for that.
class ContextWatch {
 public:
  ContextWatch() = default;
  ContextWatch(const ContextWatch&) = delete;
  ContextWatch& operator=(const ContextWatch&) = delete;
  ~ContextWatch();

  Status start(const std::shared_ptr<DeviceContext>& context);

  // Returns hepErrorCuda once the context has died, with CUDA's name for the reason. Any thread may
  // call it.
  Status status() const { return dead_.load(std::memory_order_acquire) ? death_ : Status(); }

 private:
  Status start_thread();
  void run() noexcept;
  Status look();

  const pid_t process_ = ::getpid();
  std::shared_ptr<DeviceContext> context_;
  CUstream stream_ = nullptr;
  CUevent event_ = nullptr;

  Status death_;  // constant once dead_ is set
  std::atomic<bool> dead_{false};

  Descriptor wake_;
  std::thread thread_;
};

}  // namespace hep
