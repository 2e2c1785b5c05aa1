// SPDX-License-Identifier: Apache-2.0
// The kernels as the host sees them.
#pragma once

#include <cuda_runtime_api.h>

#include "backend/cuda/blocks/common.h"
#include "backend/cuda/kernel_args.h"
#include "backend/cuda/plan.h"

namespace hep {

// Loads every instance of every kernel on the current device and grants its shared memory. A kernel
// that is loaded at its first launch could wait for a kernel that waits for a peer.
cudaError_t prepare_kernels();

namespace route {
cudaError_t prepare_map();
cudaError_t prepare_route();
// Comes before the routing update that takes the indices.
cudaError_t launch_map(const MapArgs& args, const Plan& plan, cudaStream_t stream);
cudaError_t launch_route(const RouteArgs& args, int32_t index_type, const Plan& plan,
                         cudaStream_t stream);
}  // namespace route

namespace dispatch {
cudaError_t prepare_quantize();
cudaError_t prepare_dispatch();
// Comes before the dispatch of the rows that it leaves in the window.
cudaError_t launch_quantize(const QuantizeArgs& args, const Grid& grid, cudaStream_t stream);
cudaError_t launch_dispatch(const DispatchArgs& args, const Plan& plan, cudaStream_t stream);
}  // namespace dispatch

namespace fused {
cudaError_t prepare_update_and_dispatch();
// Updates the routing and dispatches in one launch, if can_assign() says that there is room for it.
cudaError_t launch_update_and_dispatch(UpdateArgs args, int32_t index_type, const Plan& plan,
                                       cudaStream_t stream);
}  // namespace fused

namespace combine {
cudaError_t prepare_gradients();
cudaError_t prepare_combine();
// Comes before the combine of the same arguments.
cudaError_t launch_send_gradients(const CombineArgs& args, const Plan& plan, cudaStream_t stream);
cudaError_t launch_combine(CombineArgs args, const Plan& plan, cudaStream_t stream);
}  // namespace combine

// The values of the API's enums that an instance of a kernel is compiled for.
constexpr int32_t kAny = -1;
struct InstanceKey {
  int32_t layout = kAny;        // hepLayout_t
  int32_t index_type = kAny;    // hepIndexType_t: 32 or 64 bits
  int32_t type = kAny;          // hepDataType_t
  int32_t partial_type = kAny;  // hepDataType_t

  constexpr bool serves(const InstanceKey& call) const {
    return serves(layout, call.layout) && serves(index_type, call.index_type) &&
           serves(type, call.type) && serves(partial_type, call.partial_type);
  }

 private:
  static constexpr bool serves(int32_t compiled, int32_t called) {
    return compiled == kAny || compiled == called;
  }
};

// The instances of a kernel, one a row.
template <typename Args, int kInstances>
struct KernelTable {
  struct Row {
    InstanceKey key;
    void (*kernel)(Args);
  };
  Row rows[kInstances];
  int most_dynamic_bytes = kMaxDynamicSharedBytes;

  // Returns the first row that serves a call; -1 if none does.
  constexpr int find(const InstanceKey& call) const {
    for (int i = 0; i < kInstances; ++i)
      if (rows[i].key.serves(call)) return i;
    return -1;
  }

  constexpr bool serves_all_layouts(InstanceKey call = {}) const {
    for (const int32_t layout : {hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded}) {
      call.layout = layout;
      if (find(call) < 0) return false;
    }
    return true;
  }

  cudaError_t prepare() const {
    for (const Row& row : rows) {
      const void* kernel = reinterpret_cast<const void*>(row.kernel);
      cudaFuncAttributes attributes;
      if (const cudaError_t result = cudaFuncGetAttributes(&attributes, kernel);
          result != cudaSuccess)
        return result;
      if (const cudaError_t result = cudaFuncSetAttribute(
              kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_dynamic_bytes);
          result != cudaSuccess)
        return result;
    }
    return cudaSuccess;
  }

  // Returns the launch's own result, not the last error of the thread, which may be older.
  cudaError_t launch(const InstanceKey& call, const Grid& grid, cudaStream_t stream,
                     const Args& args) const {
    const int instance = find(call);
    if (instance < 0) return cudaErrorInvalidDeviceFunction;
    void* arguments[] = {const_cast<Args*>(&args)};
    return cudaLaunchKernel(reinterpret_cast<const void*>(rows[instance].kernel), dim3(grid.blocks),
                            dim3(grid.threads), arguments, grid.shared_bytes, stream);
  }
};

}  // namespace hep
