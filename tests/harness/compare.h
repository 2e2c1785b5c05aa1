// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace harness {

// Adds to *counter, in device memory, how many pieces of 16 bytes (at the end, bytes) differ. Both
// are aligned to 16 bytes.
cudaError_t launch_count_differences(const void* a, const void* b, size_t bytes, uint64_t* counter,
                                     cudaStream_t stream);

}  // namespace harness
