// SPDX-License-Identifier: Apache-2.0
#include "transfer.h"

namespace bench {
namespace {

constexpr int kStages = 14;  // chunks in flight in a block
constexpr int kSharedBytes = kStages * kChunkBytes;
constexpr int kThreads = 256;
constexpr int kPlainBlocks = 264;  // of kernels that are not measured

// Word `index` of what GPU `gpu` sends.
__device__ uint64_t pattern(int gpu, uint64_t index) {
  uint64_t value = (index + 1) * 0x9e3779b97f4a7c15u + gpu;
  value = (value ^ (value >> 32)) * 0xd6e8feb86659fd93u;
  return value ^ (value >> 32);
}

__device__ int peer_of(int chunk, int blocks, int num_peers) {
  return (chunk % blocks + chunk / blocks) % num_peers;
}

// ------------------------------------------------------------------------------ PTX wrappers

__device__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ void mbarrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

__device__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ void fence_proxy_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ void mbarrier_arrive_expect_bytes(uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

__device__ bool mbarrier_try_wait(uint64_t* barrier, int parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ void bulk_load(void* stage, const void* from, int bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(stage)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

__device__ void bulk_store(void* to, const void* stage, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
               "r"(shared_address(stage)), "r"(bytes)
               : "memory");
}

__device__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until at most `kPending` groups are left whose stages are still being read.
template <int kPending>
__device__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

__device__ void bulk_wait_written() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// ----------------------------------------------------------------------------------- kernels

__global__ void fill_kernel(uint64_t* region, int gpu) {
  const uint64_t words = uint64_t{kChunks} * kChunkWords;
  const uint64_t step = uint64_t{gridDim.x} * blockDim.x;
  for (uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < words; i += step) {
    region[i] = pattern(gpu, i);
  }
}

// One thread keeps kStages loads in flight; the others only help to compare, if that is asked for.
__global__ void load_kernel(const __grid_constant__ TransferArgs args) {
  extern __shared__ __align__(128) char stages[];
  __shared__ uint64_t full[kStages];
  if (threadIdx.x == 0) {
    for (uint64_t& barrier : full) mbarrier_init(&barrier, 1);
    fence_mbarrier_init();
    fence_proxy_async_shared();
  }
  __syncthreads();
  const bool compare = args.wrong != nullptr;
  if (!compare && threadIdx.x != 0) return;

  const int blocks = gridDim.x;
  const int total = args.passes * kChunks;
  const auto issue = [&](int turn) {
    const int visit = blockIdx.x + turn * blocks;
    if (visit >= total) return;
    const int chunk = visit % kChunks, stage = turn % kStages;
    const int peer = peer_of(chunk, blocks, args.num_peers);
    mbarrier_arrive_expect_bytes(&full[stage], kChunkBytes);
    bulk_load(stages + stage * kChunkBytes, args.peers[peer] + size_t{kChunkBytes} * chunk,
              kChunkBytes, &full[stage]);
  };
  if (threadIdx.x == 0) {
    for (int turn = 0; turn < kStages; ++turn) issue(turn);
  }
  for (int turn = 0; blockIdx.x + turn * blocks < total; ++turn) {
    const int stage = turn % kStages;
    while (!mbarrier_try_wait(&full[stage], turn / kStages & 1)) {
    }
    if (compare) {
      const int chunk = (blockIdx.x + turn * blocks) % kChunks;
      const int gpu = (args.gpu + 1 + peer_of(chunk, blocks, args.num_peers)) % args.num_gpus;
      const auto* words = reinterpret_cast<const uint64_t*>(stages + stage * kChunkBytes);
      for (int i = threadIdx.x; i < kChunkWords; i += blockDim.x) {
        if (words[i] != pattern(gpu, uint64_t{kChunkWords} * chunk + i)) atomicAdd(args.wrong, 1);
      }
      fence_proxy_async_shared();
      __syncthreads();
    }
    if (threadIdx.x == 0) issue(turn + kStages);
  }
}

// The stages are filled once and stored again and again.
__global__ void store_kernel(const __grid_constant__ TransferArgs args) {
  extern __shared__ __align__(128) char stages[];
  for (int i = threadIdx.x; i < kStages * kChunkWords; i += blockDim.x) {
    reinterpret_cast<uint64_t*>(stages)[i] = pattern(args.gpu, i);
  }
  fence_proxy_async_shared();
  __syncthreads();
  if (threadIdx.x != 0) return;

  const int blocks = gridDim.x;
  const int total = args.passes * kChunks;
  for (int turn = 0, visit = blockIdx.x; visit < total; ++turn, visit += blocks) {
    const int chunk = visit % kChunks;
    const int peer = peer_of(chunk, blocks, args.num_peers);
    bulk_store(args.peers[peer] + size_t{kChunkBytes} * chunk,
               stages + turn % kStages * kChunkBytes, kChunkBytes);
    bulk_commit();
    bulk_wait_read<kStages - 1>();
  }
  bulk_wait_written();
}

// `blocks` is the grid of the stores that are checked.
__global__ void check_stores_kernel(const __grid_constant__ TransferArgs args,
                                    const uint64_t* region, int blocks) {
  for (int chunk = blockIdx.x; chunk < kChunks; chunk += gridDim.x) {
    const int back = 1 + peer_of(chunk, blocks, args.num_peers);
    const int gpu = (args.gpu - back + args.num_gpus) % args.num_gpus;
    const int stage = chunk / blocks % kStages;
    for (int i = threadIdx.x; i < kChunkWords; i += blockDim.x) {
      const uint64_t expected = pattern(gpu, uint64_t{kChunkWords} * stage + i);
      if (region[uint64_t{kChunkWords} * chunk + i] != expected) atomicAdd(args.wrong, 1);
    }
  }
}

cudaError_t allow_shared_memory(void (*kernel)(TransferArgs)) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                              cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
}

}  // namespace

cudaError_t launch_fill(char* region, int gpu, cudaStream_t stream) {
  fill_kernel<<<kPlainBlocks, kThreads, 0, stream>>>(reinterpret_cast<uint64_t*>(region), gpu);
  return cudaGetLastError();
}

cudaError_t launch_load_from_peers(const TransferArgs& args, int sms, cudaStream_t stream) {
  const cudaError_t error = allow_shared_memory(load_kernel);
  if (error != cudaSuccess) return error;
  load_kernel<<<sms, kThreads, kSharedBytes, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_store_to_peers(const TransferArgs& args, int sms, cudaStream_t stream) {
  const cudaError_t error = allow_shared_memory(store_kernel);
  if (error != cudaSuccess) return error;
  store_kernel<<<sms, kThreads, kSharedBytes, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_check_stores(const TransferArgs& args, const char* region, int sms,
                                cudaStream_t stream) {
  check_stores_kernel<<<kPlainBlocks, kThreads, 0, stream>>>(
      args, reinterpret_cast<const uint64_t*>(region), sms);
  return cudaGetLastError();
}

}  // namespace bench
