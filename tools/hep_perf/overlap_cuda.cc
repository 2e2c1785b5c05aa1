// SPDX-License-Identifier: Apache-2.0
#include "overlap.h"

#include <cuda_runtime_api.h>

#include <stdexcept>

#include "cuda_check.h"
#include "gemm.h"

namespace perf {

Marker::Marker() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  event_ = event;
}

Marker::~Marker() { cudaEventDestroy(static_cast<cudaEvent_t>(event_)); }

void Marker::record(hepStream_t stream) {
  check(cudaEventRecord(static_cast<cudaEvent_t>(event_), stream), "cudaEventRecord");
}

void Marker::wait(hepStream_t stream) {
  check(cudaStreamWaitEvent(stream, static_cast<cudaEvent_t>(event_), 0), "cudaStreamWaitEvent");
}

Gemm::Gemm(int free_sms)
    : a_(hepBackendCuda, kGemmABytes),
      b_(hepBackendCuda, kGemmBBytes),
      c_(hepBackendCuda, kGemmCBytes) {
  constexpr unsigned char kSmallNumber = 0x3c;  // twice: 0.0115 in BF16
  a_.fill(kSmallNumber);
  b_.fill(kSmallNumber);
  int device = 0, sms = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  blocks_ = sms - free_sms;
  if (blocks_ < 1) throw std::runtime_error("the operations leave no SM free for other work");
  check(prepare_gemm(), "the stand-in GEMM");
}

void Gemm::launch(hepStream_t stream) const {
  check(launch_gemm(a_.data(), b_.data(), c_.as<float>(), blocks_, stream), "the stand-in GEMM");
}

}  // namespace perf
