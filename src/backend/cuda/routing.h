// SPDX-License-Identifier: Apache-2.0
// A routing on the cuda backend: its operations become launches.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/cuda/backend.h"

namespace hep {

class CudaRouting : public BackendRouting {
 public:
  CudaRouting(CudaBackend& backend, CudaLane& lane, const RoutingRequest& request);
  ~CudaRouting() override;

  // The library's, where the request has none.
  Status take_memory();

  Status update(const TopK& choice, hepStream_t stream) override;
  Status dispatch(const DispatchRequest& request, const Batch& batch, Step step,
                  hepStream_t stream) override;
  Status combine(const hepCombineArgs_t& args, const Batch& batch, Step step,
                 hepStream_t stream) override;
  bool has_begun() const override { return has_begun_; }
  Status query(hepRoutingCounts_t* counts, hepStream_t stream) override;
  const void* memory() const override { return memory_; }

 private:
  Status run_update(TopK choice, Step step, hepStream_t stream);
  Status list_map(Step step, hepStream_t stream, TopK* choice);
  Status find_rows(DispatchArgs* args);
  Status publish_rows(const DispatchArgs& args, hepStream_t stream);
  Status find_outputs(const hepCombineArgs_t& call, CombineArgs* args);

  CudaBackend& backend_;
  CudaLane& lane_;
  const RoutingRequest request_;
  KernelContext kernel_;   // of the lane, with the layout of this routing
  const uint64_t number_;  // among all routings of the process, from 1
  bool has_begun_ = false;
  std::unique_ptr<DeviceMemory> own_;
  void* memory_;
};

}  // namespace hep
