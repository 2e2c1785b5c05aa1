// SPDX-License-Identifier: Apache-2.0
#include "gpu/enqueued_work.h"

#include "gpu/driver.h"

namespace hep {

EnqueuedWork::~EnqueuedWork() {
  if (latest_ != nullptr && context_->check_not_reset().ok()) cudaEventDestroy(latest_);
}

Status EnqueuedWork::start(const std::shared_ptr<DeviceContext>& context) {
  context_ = context;
  HEP_CUDA_TRY(cudaEventCreateWithFlags(&latest_, cudaEventDisableTiming));
  return Status();
}

void EnqueuedWork::note(cudaStream_t stream) {
  // An event that is recorded during capture becomes a part of the graph.
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  cudaError_t result = cudaStreamIsCapturing(stream, &capture);
  if (result == cudaSuccess && capture == cudaStreamCaptureStatusNone)
    result = cudaEventRecord(latest_, stream);
  if (!cuda_status(result, "noting what was enqueued").ok() ||
      capture != cudaStreamCaptureStatusNone)
    missed_ = true;
}

bool EnqueuedWork::wait() const {
  return cuda_status(cudaEventSynchronize(latest_), "waiting for what was enqueued").ok() &&
         !missed_;
}

}  // namespace hep
