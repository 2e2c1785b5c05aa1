// SPDX-License-Identifier: Apache-2.0
// Device memory, streams, graphs and events, by the CUDA runtime.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "compare.h"
#include "device.h"

namespace harness::device {
namespace {

void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(error));
}

// The purposes of a stream: the work of a rank, or its synchronous copies. A stream keeps its
// purpose.
struct Streams {
  std::vector<hepStream_t> of_ranks, of_copies;
};

// Keeps what was given back, blocks by device and size and streams by device, and what take_rest()
// took.
struct Pool {
  std::mutex mutex;
  std::map<std::pair<int, size_t>, std::vector<void*>> blocks;
  std::map<int, Streams> streams;
  std::map<int, std::vector<void*>> rest;
};

// This is never destroyed, because the CUDA context may go before it.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

// Rounds to powers of two up to 2 MiB and to multiples of 2 MiB beyond, so that blocks find new
// users.
size_t block_bytes(size_t bytes) {
  constexpr size_t kLarge = size_t{2} << 20;
  if (bytes > kLarge) return (bytes + kLarge - 1) / kLarge * kLarge;
  size_t size = 256;
  while (size < bytes) size *= 2;
  return size;
}

// Streams take turns at the hardware queues; count() asks for 32 of them. Ranks that share a device
// must each have a queue of their own: a kernel behind the work of a rank that waits for it would
// never start. So the streams of a device are made in a row, and used again and again.
constexpr int kStreamsInARow = 8;

void add_streams(int count, std::vector<hepStream_t>* streams) {
  for (int i = 0; i < count; ++i) {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    streams->push_back(stream);
  }
}

hepStream_t take_stream(std::vector<hepStream_t> Streams::*purpose) {
  std::lock_guard<std::mutex> lock(pool().mutex);
  const auto [entry, is_new] = pool().streams.try_emplace(current());
  if (is_new) {
    add_streams(kStreamsInARow, &entry->second.of_ranks);
    add_streams(kStreamsInARow, &entry->second.of_copies);
  }
  std::vector<hepStream_t>& streams = entry->second.*purpose;
  if (streams.empty()) add_streams(1, &streams);
  const hepStream_t stream = streams.back();
  streams.pop_back();
  return stream;
}

void return_stream(hepStream_t stream, std::vector<hepStream_t> Streams::*purpose) {
  cudaStreamSynchronize(stream);
  int device = 0;
  if (cudaStreamGetDevice(stream, &device) != cudaSuccess) return;
  std::lock_guard<std::mutex> lock(pool().mutex);
  (pool().streams[device].*purpose).push_back(stream);
}

// Returns a stream of the calling thread for synchronous copies, so that they wait for nothing
// else.
class CopyStream {
 public:
  CopyStream() : stream_(take_stream(&Streams::of_copies)) {}
  ~CopyStream() { return_stream(stream_, &Streams::of_copies); }
  CopyStream(const CopyStream&) = delete;
  CopyStream& operator=(const CopyStream&) = delete;
  hepStream_t get() const { return stream_; }

 private:
  hepStream_t stream_;
};

hepStream_t copy_stream() {
  thread_local std::map<int, CopyStream> streams;
  return streams.try_emplace(current()).first->second.get();
}

}  // namespace

int count() {
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
  // Loading a kernel at its first launch, even one that sets memory, waits for the device, and so
  // for ranks that wait for this one.
  setenv("CUDA_MODULE_LOADING", "EAGER", 0);

  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) return 0;
  for (int device = 0; device < devices; ++device) {
    int major = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        major < 9) {
      return 0;
    }
  }
  return devices;
}

int current() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

void set_current(int device) { check(cudaSetDevice(device), "cudaSetDevice"); }

Uuid uuid(int device) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  Uuid name;
  static_assert(sizeof properties.uuid.bytes == sizeof name);
  std::memcpy(name.data(), properties.uuid.bytes, sizeof name);
  return name;
}

void reset() {
  // After a fault each call may report it.
  int device = 0;
  cudaGetDevice(&device);
  cudaDeviceReset();
  std::lock_guard<std::mutex> lock(pool().mutex);
  pool().streams.erase(device);
  for (auto& [place, blocks] : pool().blocks)
    if (place.first == device) blocks.clear();
}

int num_sms() {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, current()),
        "cudaDeviceGetAttribute");
  return count;
}

void* allocate(size_t bytes) {
  const size_t size = block_bytes(bytes);
  {
    std::lock_guard<std::mutex> lock(pool().mutex);
    std::vector<void*>& blocks = pool().blocks[{current(), size}];
    if (!blocks.empty()) {
      void* const block = blocks.back();
      blocks.pop_back();
      return block;
    }
  }
  void* block = nullptr;
  check(cudaMalloc(&block, size), "cudaMalloc");
  return block;
}

void release(void* pointer, size_t bytes) {
  cudaPointerAttributes attributes{};
  if (cudaPointerGetAttributes(&attributes, pointer) != cudaSuccess) return;
  std::lock_guard<std::mutex> lock(pool().mutex);
  pool().blocks[{attributes.device, block_bytes(bytes)}].push_back(pointer);
}

void free_unused() {
  std::lock_guard<std::mutex> lock(pool().mutex);
  for (auto& [place, blocks] : pool().blocks) {
    if (place.first != current()) continue;
    for (void* const block : blocks) check(cudaFree(block), "cudaFree");
    blocks.clear();
  }
}

size_t memory_in_use() {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return total - free;
}

void* allocate_managed(size_t bytes) {
  void* memory = nullptr;
  check(cudaMallocManaged(&memory, bytes), "cudaMallocManaged");
  return memory;
}

void release_managed(void* pointer) { cudaFree(pointer); }

void take_rest(size_t left) {
  constexpr size_t kSmallest = size_t{2} << 20;
  for (size_t size = size_t{1} << 40; size >= kSmallest;) {
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    if (free < left + kSmallest) return;
    size = std::min(size, free - left);
    void* block = nullptr;
    if (cudaMalloc(&block, size) == cudaSuccess) {
      const std::lock_guard<std::mutex> lock(pool().mutex);
      pool().rest[current()].push_back(block);
    } else {
      cudaGetLastError();
      size /= 2;
    }
  }
}

void return_rest() {
  const std::lock_guard<std::mutex> lock(pool().mutex);
  for (void* const block : pool().rest[current()]) check(cudaFree(block), "cudaFree");
  pool().rest[current()].clear();
}

void copy(void* to, const void* from, size_t bytes) {
  copy_on(copy_stream(), to, from, bytes);
  synchronize(copy_stream());
}

void fill(void* to, unsigned char byte, size_t bytes) {
  fill_on(copy_stream(), to, byte, bytes);
  synchronize(copy_stream());
}

hepStream_t create_stream() { return take_stream(&Streams::of_ranks); }

void destroy_stream(hepStream_t stream) { return_stream(stream, &Streams::of_ranks); }

void synchronize(hepStream_t stream) {
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

void copy_on(hepStream_t stream, void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "cudaMemcpyAsync");
}

void fill_on(hepStream_t stream, void* to, unsigned char byte, size_t bytes) {
  check(cudaMemsetAsync(to, byte, bytes, stream), "cudaMemsetAsync");
}

void count_differences_on(hepStream_t stream, const void* a, const void* b, size_t bytes,
                          uint64_t* counter) {
  check(launch_count_differences(a, b, bytes, counter, stream), "launch_count_differences");
}

void begin_capture(hepStream_t stream, bool global) {
  check(cudaStreamBeginCapture(
            stream, global ? cudaStreamCaptureModeGlobal : cudaStreamCaptureModeThreadLocal),
        "cudaStreamBeginCapture");
}

void* end_capture(hepStream_t stream, size_t* num_nodes) {
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  check(cudaGraphGetNodes(graph, nullptr, num_nodes), "cudaGraphGetNodes");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(error, "cudaGraphInstantiate");
  // The first launch then allocates nothing.
  check(cudaGraphUpload(executable, stream), "cudaGraphUpload");
  synchronize(stream);
  return executable;
}

void launch_graph(void* executable, hepStream_t stream) {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable), stream), "cudaGraphLaunch");
}

void destroy_graph(void* executable) {
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable));
}

void* create_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreate(&event), "cudaEventCreate");
  return event;
}

void destroy_event(void* event) { cudaEventDestroy(static_cast<cudaEvent_t>(event)); }

void record_event(void* event, hepStream_t stream) {
  check(cudaEventRecord(static_cast<cudaEvent_t>(event), stream), "cudaEventRecord");
}

double elapsed_milliseconds(void* start, void* stop) {
  check(cudaEventSynchronize(static_cast<cudaEvent_t>(stop)), "cudaEventSynchronize");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(start),
                             static_cast<cudaEvent_t>(stop)),
        "cudaEventElapsedTime");
  return milliseconds;
}

}  // namespace harness::device
