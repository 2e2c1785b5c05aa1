// SPDX-License-Identifier: Apache-2.0
#include "gemm.h"

#include <cuda_bf16.h>
#include <mma.h>

namespace perf {
namespace {

// A warp computes 32 x 32 values, a block of 4 x 2 warps a tile.
constexpr int kFragment = 16, kWarpSide = 32, kWarpRows = 4, kWarpColumns = 2;
constexpr int kTileM = kWarpRows * kWarpSide, kTileN = kWarpColumns * kWarpSide;
constexpr int kThreads = kWarpRows * kWarpColumns * 32;

struct GemmArgs {
  const __nv_bfloat16 *a, *b;
  float* c;
};

namespace wmma = nvcuda::wmma;

__device__ void multiply(const GemmArgs& args, int row, int column) {
  using Accumulator = wmma::fragment<wmma::accumulator, kFragment, kFragment, kFragment, float>;
  Accumulator sums[2][2];
  for (auto& line : sums) {
    for (Accumulator& sum : line) wmma::fill_fragment(sum, 0.0f);
  }
  for (int k = 0; k < kGemmK; k += kFragment) {
    wmma::fragment<wmma::matrix_a, kFragment, kFragment, kFragment, __nv_bfloat16, wmma::row_major>
        a[2];
    wmma::fragment<wmma::matrix_b, kFragment, kFragment, kFragment, __nv_bfloat16, wmma::col_major>
        b[2];
    for (int i = 0; i < 2; ++i) {
      wmma::load_matrix_sync(a[i], args.a + (row + i * kFragment) * kGemmK + k, kGemmK);
      wmma::load_matrix_sync(b[i], args.b + (column + i * kFragment) * kGemmK + k, kGemmK);
    }
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) wmma::mma_sync(sums[i][j], a[i], b[j], sums[i][j]);
    }
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      float* const c = args.c + (row + i * kFragment) * kGemmN + column + j * kFragment;
      wmma::store_matrix_sync(c, sums[i][j], kGemmN, wmma::mem_row_major);
    }
  }
}

__global__ void gemm_kernel(const __grid_constant__ GemmArgs args) {
  constexpr int kTilesN = kGemmN / kTileN, kTiles = kGemmM / kTileM * kTilesN;
  const int warp = threadIdx.x / 32;
  for (int tile = blockIdx.x; tile < kTiles; tile += gridDim.x) {
    const int row = tile / kTilesN * kTileM + warp / kWarpColumns * kWarpSide;
    const int column = tile % kTilesN * kTileN + warp % kWarpColumns * kWarpSide;
    multiply(args, row, column);
  }
}

// All that a block can have, so that nothing else that needs any fits beside it.
cudaError_t most_shared_bytes(int* bytes) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  return cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

}  // namespace

cudaError_t prepare_gemm() {
  int bytes = 0;
  const cudaError_t error = most_shared_bytes(&bytes);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(gemm_kernel),
                              cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

cudaError_t launch_gemm(const void* a, const void* b, float* c, int blocks, cudaStream_t stream) {
  int bytes = 0;
  const cudaError_t error = most_shared_bytes(&bytes);
  if (error != cudaSuccess) return error;
  GemmArgs args{static_cast<const __nv_bfloat16*>(a), static_cast<const __nv_bfloat16*>(b), c};
  void* arguments[] = {&args};
  return cudaLaunchKernel(reinterpret_cast<const void*>(gemm_kernel), dim3(blocks), dim3(kThreads),
                          arguments, bytes, stream);
}

}  // namespace perf
