// SPDX-License-Identifier: Apache-2.0
// Other work for a GPU, and two streams to overlap it on. overlap_cuda.cc provides it; a build without
// CUDA has gpu_none.cc. Failures are thrown as std::runtime_error.
#pragma once

#include <hybridep.h>

#include "harness/memory.h"

namespace perf {

// A point in a stream that another one waits for. A wait is for the latest record before it.
class Marker {
 public:
  Marker();
  ~Marker();
  Marker(const Marker&) = delete;
  Marker& operator=(const Marker&) = delete;
  void record(hepStream_t stream);
  void wait(hepStream_t stream);

 private:
  void* event_ = nullptr;
};

// A stand-in for a GEMM: always the same product of BF16 matrices, on all SMs but so many, which it
// leaves to others.
class Gemm {
 public:
  explicit Gemm(int free_sms);
  void launch(hepStream_t stream) const;

 private:
  int blocks_ = 0;
  harness::Buffer a_, b_, c_;
};

}  // namespace perf
