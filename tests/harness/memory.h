// SPDX-License-Identifier: Apache-2.0
// Memory, streams, graphs and clocks that the library's calls accept: those of CUDA on the cuda
// backend, plain ones on the host. They throw std::runtime_error if CUDA fails.
#pragma once

#include <hybridep.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace harness {

// Copy between plain host memory and memory of the backend, and wait for the copy.
void upload(hepBackend_t backend, void* to, const void* from, size_t bytes);
void download(hepBackend_t backend, void* to, const void* from, size_t bytes);
void fill(hepBackend_t backend, void* to, unsigned char byte, size_t bytes);

// Device memory on cuda, plain memory on host. It is aligned to 256 bytes, and its contents are
// undefined. A block that is given back is kept for later buffers, because freeing device memory
// may wait for kernels that wait for other ranks.
class Buffer {
 public:
  Buffer() = default;
  Buffer(hepBackend_t backend, size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }

  void* data() const { return data_; }  // nullptr if empty
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

  void upload(const void* from, size_t bytes, size_t offset = 0);
  void download(void* to, size_t bytes, size_t offset = 0) const;
  void fill(unsigned char byte);

 private:
  void swap(Buffer& other);

  hepBackend_t backend_ = hepBackendHost;
  size_t bytes_ = 0;
  void* data_ = nullptr;
};

// Frees the blocks that were given back on the current device, for a program whose next buffers
// have other sizes. No kernel of any rank may run.
void free_unused_memory(hepBackend_t backend);

// Returns the memory of the current device that all processes use; 0 on host.
size_t device_memory_in_use(hepBackend_t backend);

// A buffer between two canaries. It begins `misalignment` bytes past a multiple of 256.
class GuardedBuffer {
 public:
  GuardedBuffer() = default;
  GuardedBuffer(hepBackend_t backend, size_t bytes, size_t misalignment = 0);

  void* data() const;  // nullptr if empty
  template <typename T>
  T* as() const {
    return static_cast<T*>(data());
  }
  size_t bytes() const { return bytes_; }

  void upload(const void* from, size_t bytes, size_t offset = 0);
  void download(void* to, size_t bytes, size_t offset = 0) const;
  void fill(unsigned char byte);

  bool intact() const;  // nothing was written outside

 private:
  hepBackend_t backend_ = hepBackendHost;
  size_t bytes_ = 0, first_ = 0;  // of the buffer's
  Buffer buffer_;
};

class Stream {
 public:
  explicit Stream(hepBackend_t backend);
  static Stream legacy(hepBackend_t backend) { return Stream(backend, nullptr); }
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  hepBackend_t backend() const { return backend_; }
  hepStream_t get() const { return stream_; }  // nullptr on host, and if it is the legacy stream
  void synchronize();

  // Copies in stream order between any two places of the backend's memory.
  void copy(void* to, const void* from, size_t bytes);
  void fill(void* to, unsigned char byte, size_t bytes);

  // Adds the number of places in which the two differ to *counter, which lies in the backend's
  // memory. In stream order.
  void count_differences(const void* a, const void* b, size_t bytes, uint64_t* counter);

 private:
  Stream(hepBackend_t backend, hepStream_t stream) : backend_(backend), stream_(stream) {}

  hepBackend_t backend_;
  hepStream_t stream_ = nullptr;
};

// Captures a stream's work and replays it. On cuda only.
class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void begin(Stream& stream,
             bool global = false);  // global: no thread may call what captures forbid
  void end(Stream& stream);
  void launch(Stream& stream);

  size_t num_nodes() const { return num_nodes_; }  // kernels and copies

 private:
  void* executable_ = nullptr;
  size_t num_nodes_ = 0;
};

// Measures the time between two points of a stream: by events on cuda, by the clock on host.
class Timer {
 public:
  explicit Timer(hepBackend_t backend);
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  void start(Stream& stream);
  void stop(Stream& stream);
  double milliseconds() const;  // waits until the stream has come to stop()

 private:
  hepBackend_t backend_;
  void* events_[2] = {nullptr, nullptr};
  std::chrono::steady_clock::time_point times_[2];
};

}  // namespace harness
