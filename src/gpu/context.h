// SPDX-License-Identifier: Apache-2.0
// The primary context of a device, which the driver and the CUDA runtime share.
#pragma once

#include <memory>

#include "base/status.h"
#include "gpu/driver.h"

namespace hep {

// Keeps a device's primary context alive.
class DeviceContext {
 public:
  static Status open(int device, std::shared_ptr<DeviceContext>* out);

  // Takes over a primary context that has been retained.
  static Status take(const DriverTable& driver, CUdevice device, CUcontext context,
                     std::shared_ptr<DeviceContext>* out);

  DeviceContext(const DeviceContext&) = delete;
  DeviceContext& operator=(const DeviceContext&) = delete;
  ~DeviceContext();

  const DriverTable& driver() const { return driver_; }
  CUdevice device() const { return device_; }
  CUcontext get() const { return context_; }

  // Returns an error once the caller has reset the device. The reset has ended everything in the
  // context, so CUDA must not get its handles and addresses any more. Needs no current context.
  Status check_not_reset() const;

  // Sets `bytes` bytes to zero and waits for that alone, because other work of the device may wait
  // for a peer. The context must be current.
  Status zero(CUdeviceptr address, size_t bytes) const;

 private:
  DeviceContext(const DriverTable& driver, CUdevice device, CUcontext context)
      : driver_(driver), device_(device), context_(context) {}

  const DriverTable& driver_;
  const CUdevice device_;
  const CUcontext context_;
  unsigned long long id_ = 0;  // no other context of the process has it
};

// Makes a context current for the lifetime of this object. Unlike cudaSetDevice it does not change
// the thread's device, and creates no context on a device that was current but unused.
class CurrentContext {
 public:
  explicit CurrentContext(const DeviceContext& context)
      : driver_(context.driver()), result_(driver_.CtxPushCurrent(context.get())) {}
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;
  ~CurrentContext() {
    CUcontext popped;
    if (result_ == CUDA_SUCCESS) driver_.CtxPopCurrent(&popped);
  }

  Status status() const { return driver_status(result_, "cuCtxPushCurrent"); }

 private:
  const DriverTable& driver_;
  const CUresult result_;
};

// Lets the calling thread make calls that CUDA refuses while any thread captures a graph. These
// calls must not belong to a capture. A context must be current.
class OutsideOfCaptures {
 public:
  explicit OutsideOfCaptures(const DriverTable& driver) : driver_(driver) {
    driver_.ThreadExchangeStreamCaptureMode(&mode_);
  }
  OutsideOfCaptures(const OutsideOfCaptures&) = delete;
  OutsideOfCaptures& operator=(const OutsideOfCaptures&) = delete;
  ~OutsideOfCaptures() { driver_.ThreadExchangeStreamCaptureMode(&mode_); }

 private:
  const DriverTable& driver_;
  CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
};

}  // namespace hep
