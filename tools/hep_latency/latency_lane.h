// SPDX-License-Identifier: Apache-2.0
// A low-latency routing with all that its dispatches and combines take: two batches, with indices,
// tokens and expert outputs of their own.
#pragma once

#include <hybridep.h>

#include "bench/buffers.h"
#include "bench/check.h"

namespace bench {

class LatencyLane {
 public:
  LatencyLane(const Job& job, hepComm_t comm, int lane, hepLayout_t layout, Memory memory, int rank,
              Session& session);
  ~LatencyLane() { hepRoutingDestroy(routing_); }
  LatencyLane(const LatencyLane&) = delete;
  LatencyLane& operator=(const LatencyLane&) = delete;

  // `batch` is 0 or 1. A dispatch updates the routing; a combine takes it as it is.
  void dispatch(int batch, hepStream_t stream);
  void combine(int batch, hepStream_t stream);
  void dispatch_send(int batch, hepStream_t stream);
  void dispatch_receive(hepStream_t stream);
  void combine_send(int batch, hepStream_t stream);
  void combine_receive(hepStream_t stream);

  // Returns how many values are wrong. Batch 0 must have come last.
  int64_t check_dispatch(Checker& checker, hepStream_t stream) const;
  int64_t check_combine(Checker& checker) const;

 private:
  void select(int batch);

  const Job& job_;
  const int rank_;
  const Placement placement_;
  const int64_t num_rows_;  // of an output of dispatch
  hepRouting_t routing_ = nullptr;
  const Rows x_, y_;
  const Weights weights_;
  const Scaling scales_;
  const harness::Buffer rows_, out_;
  const harness::Buffer indices_[2];
  hepUpdate_t update_;
  hepDispatchArgs_t dispatch_ = HEP_DISPATCH_ARGS_INITIALIZER;
  hepCombineArgs_t combine_ = HEP_COMBINE_ARGS_INITIALIZER;
};

}  // namespace bench
