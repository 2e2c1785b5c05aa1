// SPDX-License-Identifier: Apache-2.0
#include "cuda/device_memory.h"

#include <cstring>
#include <mutex>
#include <vector>

namespace hep {
namespace {

// Runs what `enqueue` puts on a stream of its own: the default stream may wait for kernels that wait for
// a peer.
template <typename Enqueue>
Status on_own_stream(Enqueue enqueue) {
  cudaStream_t stream;
  HEP_CUDA_TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  Status status = enqueue(stream);
  if (status.ok()) status = cuda_status(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  cudaStreamDestroy(stream);
  return status;
}

// Mapped memory that was given back, by the context that it belongs to: what the caller's reset of a device
// has freed is of a context that does not come again. No more blocks than were in use at once.
class SpareMemory {
 public:
  // Never destroyed: communicators may be destroyed at exit.
  static SpareMemory& instance() {
    static SpareMemory* const memory = new SpareMemory;
    return *memory;
  }

  // NULL if there is none; then there is room for the block that the caller will make.
  void* take(uint64_t context, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
      if (block->context != context || block->bytes != bytes) continue;
      void* const address = block->address;
      blocks_.erase(block);
      return address;
    }
    blocks_.reserve(++num_made_);
    return nullptr;
  }

  void give(uint64_t context, size_t bytes, void* address) {
    const std::lock_guard<std::mutex> lock(mutex_);
    blocks_.push_back({context, bytes, address});
  }

 private:
  struct Block {
    uint64_t context;
    size_t bytes;
    void* address;
  };

  std::mutex mutex_;
  std::vector<Block> blocks_;
  size_t num_made_ = 0;  // spare or not
};

}  // namespace

DeviceMemory::~DeviceMemory() {
  if (plain_ != nullptr) cudaFree(plain_);
}

Status DeviceMemory::allocate(int device, size_t bytes) {
  const Status status = virtual_.create(device, bytes, CU_MEM_HANDLE_TYPE_NONE);
  if (status.ok() || status.result() == hepErrorOutOfMemory) return status;
  return allocate_plain(device, bytes);
}

Status DeviceMemory::allocate_plain(int device, size_t bytes) {
  const DeviceGuard guard(device);
  HEP_TRY(guard.status());
  HEP_CUDA_TRY(cudaMalloc(&plain_, bytes));
  return on_own_stream([&](cudaStream_t stream) {
    return cuda_status(cudaMemsetAsync(plain_, 0, bytes, stream), "cudaMemsetAsync");
  });
}

Status DeviceMemory::write(size_t offset, const void* from, size_t bytes) {
  return on_own_stream([&](cudaStream_t stream) {
    return cuda_status(cudaMemcpyAsync(static_cast<char*>(get()) + offset, from, bytes,
                                       cudaMemcpyHostToDevice, stream),
                       "cudaMemcpyAsync");
  });
}

MappedMemory::~MappedMemory() {
  if (address_ != nullptr) SpareMemory::instance().give(context_, bytes_, address_);
}

Status MappedMemory::allocate(size_t bytes) {
  const DriverTable* table = nullptr;
  HEP_TRY(driver(&table));
  unsigned long long context = 0;
  HEP_DRIVER_TRY(*table, CtxGetId, nullptr, &context);
  void* address = SpareMemory::instance().take(context, bytes);
  if (address == nullptr)
    HEP_CUDA_TRY(cudaHostAlloc(&address, bytes, cudaHostAllocMapped | cudaHostAllocPortable));
  context_ = context;
  bytes_ = bytes;
  address_ = address;
  std::memset(address_, 0, bytes);
  return Status();
}

}  // namespace hep
