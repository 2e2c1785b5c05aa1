// SPDX-License-Identifier: Apache-2.0
#include "gpu/device_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "base/thread_annotations.h"

namespace hep {
namespace {

// Runs the work that `enqueue` puts on a stream of its own. The default stream may wait for kernels
// that wait for a peer.
template <typename Enqueue>
Status on_own_stream(Enqueue enqueue) {
  cudaStream_t stream;
  HEP_CUDA_TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  Status status = enqueue(stream);
  if (status.ok()) status = cuda_status(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  cudaStreamDestroy(stream);
  return status;
}

// Host memory that the device can reach. The process itself has allocated it, so it stays readable
// when the context is gone.
Status register_pages(size_t bytes, void** out) {
  void* const pages =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) return system_error("no %zu bytes of host memory", bytes);
  // A forked child gets zeros. If it shared the pages, a write of the parent would copy them, and
  // the device would keep the old ones.
  if (::madvise(pages, bytes, MADV_WIPEONFORK) != 0) ::madvise(pages, bytes, MADV_DONTFORK);
  const Status status =
      cuda_status(cudaHostRegister(pages, bytes, cudaHostRegisterMapped | cudaHostRegisterPortable),
                  "cudaHostRegister");
  if (!status.ok()) {
    ::munmap(pages, bytes);
    return status;
  }
  *out = pages;
  return Status();
}

// Keeps mapped memory that was given back, for each context that it is registered in. A reset of
// the device by the caller ends a context for good. It keeps no more blocks than were in use at
// once.
class SpareMemory {
 public:
  // This is never destroyed, because communicators may be destroyed at exit.
  static SpareMemory& instance() {
    static SpareMemory* const memory = new SpareMemory;
    return *memory;
  }

  // Returns NULL if there is none. Then it has reserved room for the block that the caller will
  // make.
  void* take(uint64_t context, size_t bytes) {
    const Lock lock(mutex_);
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
    const Lock lock(mutex_);
    blocks_.push_back({context, bytes, address});
  }

 private:
  struct Block {
    uint64_t context;
    size_t bytes;
    void* address;
  };

  Mutex mutex_;
  std::vector<Block> blocks_ HEP_GUARDED_BY(mutex_);
  size_t num_made_ HEP_GUARDED_BY(mutex_) = 0;  // spare or not
};

}  // namespace

DeviceMemory::~DeviceMemory() {
  if (plain_ != nullptr && context_->check_not_reset().ok()) cudaFree(plain_);
}

Status DeviceMemory::allocate(int device, size_t bytes) {
  const Status status = virtual_.create(device, bytes, CU_MEM_HANDLE_TYPE_NONE);
  if (status.ok() || status.result() == hepErrorOutOfMemory) return status;
  return allocate_plain(device, bytes);
}

Status DeviceMemory::allocate_plain(int device, size_t bytes) {
  const DeviceGuard guard(device);
  HEP_TRY(guard.status());
  HEP_TRY(DeviceContext::open(device, &context_));
  HEP_TRY(allocation_status(cuda_status(cudaMalloc(&plain_, bytes), "cudaMalloc"), device, bytes));
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
  const size_t page = ::sysconf(_SC_PAGESIZE);
  bytes = (bytes + page - 1) / page * page;
  void* address = SpareMemory::instance().take(context, bytes);
  if (address == nullptr) HEP_TRY(register_pages(bytes, &address));
  context_ = context;
  bytes_ = bytes;
  address_ = address;
  std::memset(address_, 0, bytes);
  HEP_CUDA_TRY(cudaHostGetDevicePointer(&device_address_, address_, 0));
  return Status();
}

}  // namespace hep
