// SPDX-License-Identifier: Apache-2.0
// C = A B of fixed sizes: A [M][K] and B [N][K] in BF16, C [M][N] in FP32.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace perf {

constexpr int kGemmM = 2048, kGemmN = 2048, kGemmK = 512;
constexpr size_t kGemmABytes = size_t{kGemmM} * kGemmK * 2;
constexpr size_t kGemmBBytes = size_t{kGemmN} * kGemmK * 2;
constexpr size_t kGemmCBytes = size_t{kGemmM} * kGemmN * 4;

// Once for the current device, before the first launch.
cudaError_t prepare_gemm();

// A block takes an SM of its own.
cudaError_t launch_gemm(const void* a, const void* b, float* c, int blocks, cudaStream_t stream);

}  // namespace perf
