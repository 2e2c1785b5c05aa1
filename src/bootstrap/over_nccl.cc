// SPDX-License-Identifier: Apache-2.0
// The unique id travels over an NCCL communicator. NCCL is opened at run time and never linked. The
// few functions that are needed are declared here as in its 2.x releases.
#include "bootstrap/bootstrap.h"

#ifdef HEP_HAVE_CUDA

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <poll.h>

#include <string>

#include "config/settings.h"
#include "gpu/device_memory.h"
#include "gpu/driver.h"

namespace hep {
namespace {

constexpr const char* kNcclLibrary = "libnccl.so.2";

// These are values of ncclResult_t and ncclDataType_t.
constexpr int kNcclSuccess = 0;
constexpr int kNcclInProgress = 7;  // of a communicator whose calls do not block
constexpr int kNcclUint8 = 1;

struct Nccl {
  const char* (*error_string)(int result);
  int (*comm_count)(const ncclComm* comm, int* count);
  int (*comm_user_rank)(const ncclComm* comm, int* rank);
  int (*comm_device)(const ncclComm* comm, int* device);
  int (*comm_async_error)(ncclComm* comm, int* result);
  int (*all_gather)(const void* send, void* receive, size_t count, int type, ncclComm* comm,
                    cudaStream_t stream);
};

Status check_nccl(const Nccl& nccl, int result, const char* call) {
  if (result == kNcclSuccess) return Status();
  return error(hepErrorSystem, "%s failed: %s", call, nccl.error_string(result));
}

// Prefers the instance of NCCL that made the communicator. The library is never closed, because the
// communicator outlives this exchange.
Status find_nccl(void** library) {
  *library = RTLD_DEFAULT;
  if (::dlsym(RTLD_DEFAULT, "ncclAllGather")) return Status();
  *library = ::dlopen(kNcclLibrary, RTLD_NOW | RTLD_NOLOAD);
  if (*library) return Status();
  const std::string chosen = setting_text("HEP_NCCL_LIBRARY");
  *library = ::dlopen(chosen.empty() ? kNcclLibrary : chosen.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (*library) return Status();
  const char* reason = ::dlerror();
  return error(hepErrorUnsupported, "NCCL could not be opened: %s", reason ? reason : "unknown");
}

template <typename Function>
Status find_function(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(::dlsym(library, name));
  if (*function) return Status();
  return error(hepErrorUnsupported, "NCCL has no function %s", name);
}

Status open_nccl(Nccl* nccl) {
  void* library = nullptr;
  HEP_TRY(find_nccl(&library));
  HEP_TRY(find_function(library, "ncclGetErrorString", &nccl->error_string));
  HEP_TRY(find_function(library, "ncclCommCount", &nccl->comm_count));
  HEP_TRY(find_function(library, "ncclCommUserRank", &nccl->comm_user_rank));
  HEP_TRY(find_function(library, "ncclCommCuDevice", &nccl->comm_device));
  HEP_TRY(find_function(library, "ncclCommGetAsyncError", &nccl->comm_async_error));
  return find_function(library, "ncclAllGather", &nccl->all_gather);
}

// Holds a stream and device memory. The memory is freed in stream order, because freeing must not
// wait for a peer that never comes.
class DeviceBuffer {
 public:
  Status create(size_t bytes) {
    HEP_TRY(cuda_status(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                        "cudaStreamCreateWithFlags"));
    return cuda_status(cudaMallocAsync(&memory_, bytes, stream_), "cudaMallocAsync");
  }
  ~DeviceBuffer() {
    if (memory_) cudaFreeAsync(memory_, stream_);
    if (stream_) cudaStreamDestroy(stream_);
  }
  cudaStream_t stream() const { return stream_; }
  char* memory() const { return static_cast<char*>(memory_); }

 private:
  cudaStream_t stream_ = nullptr;
  void* memory_ = nullptr;
};

struct Exchange {
  Nccl nccl;
  ncclComm* comm;
  int num_ranks;
  Deadline deadline;
  Status status;  // of the all-gather; as a callback it can return a number only
};

Status wait_for(const Exchange& exchange, cudaStream_t stream) {
  for (;;) {
    int result = kNcclSuccess;
    HEP_TRY(check_nccl(exchange.nccl, exchange.nccl.comm_async_error(exchange.comm, &result),
                       "ncclCommGetAsyncError"));
    if (result != kNcclInProgress) {
      HEP_TRY(check_nccl(exchange.nccl, result, "ncclAllGather"));
      const cudaError_t done = cudaStreamQuery(stream);
      if (done != cudaErrorNotReady) return cuda_status(done, "ncclAllGather's kernel");
      cudaGetLastError();  // clears the last error, which belongs to the user
    }
    if (exchange.deadline.expired())
      return error(hepErrorTimeout, "an all-gather over the NCCL communicator did not end in time");
    ::poll(nullptr, 0, 1);
  }
}

Status gather_over_nccl(const Exchange& exchange, const void* send, void* receive, size_t bytes) {
  const size_t all_bytes = bytes * exchange.num_ranks;
  DeviceBuffer buffer;
  HEP_TRY(buffer.create(bytes + all_bytes));
  char* const mine = buffer.memory();
  char* const all = mine + bytes;
  HEP_TRY(cuda_status(cudaMemcpyAsync(mine, send, bytes, cudaMemcpyHostToDevice, buffer.stream()),
                      "cudaMemcpyAsync"));
  const int result =
      exchange.nccl.all_gather(mine, all, bytes, kNcclUint8, exchange.comm, buffer.stream());
  if (result != kNcclInProgress) HEP_TRY(check_nccl(exchange.nccl, result, "ncclAllGather"));
  // A copy to pageable memory waits without a bound, so it comes when all is done.
  HEP_TRY(wait_for(exchange, buffer.stream()));
  HEP_TRY(
      cuda_status(cudaMemcpyAsync(receive, all, all_bytes, cudaMemcpyDeviceToHost, buffer.stream()),
                  "cudaMemcpyAsync"));
  return cuda_status(cudaStreamSynchronize(buffer.stream()), "cudaStreamSynchronize");
}

int gather_callback(const void* send, void* receive, size_t bytes, void* context) {
  auto* exchange = static_cast<Exchange*>(context);
  exchange->status = gather_over_nccl(*exchange, send, receive, bytes);
  return exchange->status.result();
}

}  // namespace

Status unique_id_over_nccl(ncclComm* comm, int timeout_ms, hepUniqueId_t* id, int* rank,
                           int* num_ranks, int* device) {
  if (!comm) return error(hepErrorInvalidArgument, "nccl is NULL");
  Nccl nccl{};
  HEP_TRY(open_nccl(&nccl));
  HEP_TRY(check_nccl(nccl, nccl.comm_count(comm, num_ranks), "ncclCommCount"));
  HEP_TRY(check_nccl(nccl, nccl.comm_user_rank(comm, rank), "ncclCommUserRank"));
  HEP_TRY(check_nccl(nccl, nccl.comm_device(comm, device), "ncclCommCuDevice"));

  const DeviceGuard guard(*device);
  HEP_TRY(guard.status());
  Exchange exchange{nccl, comm, *num_ranks, Deadline::after_ms(timeout_ms), Status()};
  const Status status =
      unique_id_over_callback(gather_callback, &exchange, *rank, *num_ranks, Status(), id);
  if (exchange.status.ok()) return status;
  return error(exchange.status.result(), "rank %d: %s", *rank, exchange.status.message().c_str());
}

}  // namespace hep

#else

namespace hep {

Status unique_id_over_nccl(ncclComm*, int, hepUniqueId_t*, int*, int*, int*) {
  return error(hepErrorUnsupported,
               "this library was built without CUDA, so it cannot use an NCCL communicator");
}

}  // namespace hep

#endif
