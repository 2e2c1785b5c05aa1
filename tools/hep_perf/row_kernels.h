// SPDX-License-Identifier: Apache-2.0
// Kernels that prepare and check cases, the empty one that launches are held against, and one that waits.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "gpu.h"

namespace perf {

cudaError_t launch_fill_rows(const GpuRows& expected, void* rows, cudaStream_t stream);

// Adds to *wrong how many values differ.
cudaError_t launch_count_wrong_rows(const GpuRows& expected, const void* rows,
                                    unsigned long long* wrong, cudaStream_t stream);

cudaError_t launch_empty(cudaStream_t stream);
cudaError_t launch_pause(double microseconds, cudaStream_t stream);

}  // namespace perf
