// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace harness {

// Counts the pieces of 16 bytes that differ, and at the end single bytes. Adds the count to
// *counter in device memory. Both operands are aligned to 16 bytes.
cudaError_t launch_count_differences(const void* a, const void* b, size_t bytes, uint64_t* counter,
                                     cudaStream_t stream);

}  // namespace harness
