// SPDX-License-Identifier: Apache-2.0
// Kernels that move bytes between GPUs with the copy engine of the SMs (TMA) and nothing else.
//
// A region is kChunks chunks. Chunk c goes between a GPU and its peer number peer_of(c): the same
// chunk of different GPUs goes to different peers, and each block visits its peers in turn.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace bench {

constexpr int kMaxGpus = 16;
constexpr int kChunkBytes = 14336;  // a row of 7168 BF16
constexpr int kChunkWords = kChunkBytes / sizeof(uint64_t);
constexpr int kChunks = 16384;  // 224 MiB a region: far more than an L2 cache holds
constexpr size_t kRegionBytes = size_t{kChunks} * kChunkBytes;

struct TransferArgs {
  char* peers[kMaxGpus];  // region of each peer, in the order gpu + 1, gpu + 2, ...
  int num_peers;
  int gpu;
  int num_gpus;
  int passes;                 // over the region
  unsigned long long* wrong;  // loads: if not NULL, words that are not as expected are counted here
};

// Fills a region with the words that load_from_peers expects of GPU `gpu`.
cudaError_t launch_fill(char* region, int gpu, cudaStream_t stream);

// Loads the peers' regions into shared memory.
cudaError_t launch_load_from_peers(const TransferArgs& args, int sms, cudaStream_t stream);

// Stores from shared memory to the peers' regions.
cudaError_t launch_store_to_peers(const TransferArgs& args, int sms, cudaStream_t stream);

// Counts in *args.wrong the words of this GPU's `region` that are not what one pass of
// store_to_peers of all GPUs, on `sms` SMs, leaves there.
cudaError_t launch_check_stores(const TransferArgs& args, const char* region, int sms,
                                cudaStream_t stream);

}  // namespace bench
