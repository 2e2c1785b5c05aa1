// SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#include "device.h"

namespace harness {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kGuardBytes = 256;
constexpr unsigned char kCanary = 0x5c;

void* allocate(hepBackend_t backend, size_t bytes) {
  if (backend == hepBackendCuda) return device::allocate(bytes);
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  void* const memory = std::aligned_alloc(kAlignment, rounded);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void upload(hepBackend_t backend, void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  if (backend == hepBackendCuda) {
    device::copy(to, from, bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
}

void download(hepBackend_t backend, void* to, const void* from, size_t bytes) {
  upload(backend, to, from, bytes);
}

void fill(hepBackend_t backend, void* to, unsigned char byte, size_t bytes) {
  if (bytes == 0) return;
  if (backend == hepBackendCuda) {
    device::fill(to, byte, bytes);
  } else {
    std::memset(to, byte, bytes);
  }
}

Buffer::Buffer(hepBackend_t backend, size_t bytes)
    : backend_(backend), bytes_(bytes), data_(bytes == 0 ? nullptr : allocate(backend, bytes)) {}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (backend_ == hepBackendCuda) {
    device::release(data_, bytes_);
  } else {
    std::free(data_);
  }
}

void Buffer::swap(Buffer& other) {
  std::swap(backend_, other.backend_);
  std::swap(bytes_, other.bytes_);
  std::swap(data_, other.data_);
}

void Buffer::upload(const void* from, size_t bytes, size_t offset) {
  if (offset + bytes > bytes_) throw std::out_of_range("upload past the end of a buffer");
  harness::upload(backend_, as<char>() + offset, from, bytes);
}

void Buffer::download(void* to, size_t bytes, size_t offset) const {
  if (offset + bytes > bytes_) throw std::out_of_range("download past the end of a buffer");
  harness::download(backend_, to, as<char>() + offset, bytes);
}

void Buffer::fill(unsigned char byte) { harness::fill(backend_, data_, byte, bytes_); }

void free_unused_memory(hepBackend_t backend) {
  if (backend == hepBackendCuda) device::free_unused();
}

size_t device_memory_in_use(hepBackend_t backend) {
  return backend == hepBackendCuda ? device::memory_in_use() : 0;
}

GuardedBuffer::GuardedBuffer(hepBackend_t backend, size_t bytes, size_t misalignment)
    : backend_(backend),
      bytes_(bytes),
      first_(kGuardBytes + misalignment),
      buffer_(backend, bytes == 0 ? 0 : first_ + bytes + kGuardBytes) {
  buffer_.fill(kCanary);
}

void* GuardedBuffer::data() const { return bytes_ == 0 ? nullptr : buffer_.as<char>() + first_; }

void GuardedBuffer::upload(const void* from, size_t bytes, size_t offset) {
  if (offset + bytes > bytes_) throw std::out_of_range("upload past the end of a buffer");
  if (bytes > 0) buffer_.upload(from, bytes, first_ + offset);
}

void GuardedBuffer::download(void* to, size_t bytes, size_t offset) const {
  if (offset + bytes > bytes_) throw std::out_of_range("download past the end of a buffer");
  if (bytes > 0) buffer_.download(to, bytes, first_ + offset);
}

void GuardedBuffer::fill(unsigned char byte) { harness::fill(backend_, data(), byte, bytes_); }

bool GuardedBuffer::intact() const {
  if (bytes_ == 0) return true;
  unsigned char guards[2 * kGuardBytes];
  buffer_.download(guards, kGuardBytes, first_ - kGuardBytes);
  buffer_.download(guards + kGuardBytes, kGuardBytes, first_ + bytes_);
  return std::all_of(std::begin(guards), std::end(guards),
                     [](unsigned char byte) { return byte == kCanary; });
}

Stream::Stream(hepBackend_t backend) : backend_(backend) {
  if (backend == hepBackendCuda) stream_ = device::create_stream();
}

Stream::~Stream() {
  if (stream_ != nullptr) device::destroy_stream(stream_);
}

void Stream::synchronize() {
  if (backend_ == hepBackendCuda) device::synchronize(stream_);
}

void Stream::copy(void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  if (backend_ == hepBackendCuda) {
    device::copy_on(stream_, to, from, bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
}

void Stream::fill(void* to, unsigned char byte, size_t bytes) {
  if (bytes == 0) return;
  if (backend_ == hepBackendCuda) {
    device::fill_on(stream_, to, byte, bytes);
  } else {
    std::memset(to, byte, bytes);
  }
}

void Stream::count_differences(const void* a, const void* b, size_t bytes, uint64_t* counter) {
  if (bytes == 0) return;
  if (backend_ == hepBackendCuda) {
    device::count_differences_on(stream_, a, b, bytes, counter);
  } else {
    *counter += std::memcmp(a, b, bytes) != 0;
  }
}

Graph::~Graph() {
  if (executable_ != nullptr) device::destroy_graph(executable_);
}

void Graph::begin(Stream& stream, bool global) { device::begin_capture(stream.get(), global); }
void Graph::end(Stream& stream) { executable_ = device::end_capture(stream.get(), &num_nodes_); }
void Graph::launch(Stream& stream) { device::launch_graph(executable_, stream.get()); }

Timer::Timer(hepBackend_t backend) : backend_(backend) {
  if (backend_ != hepBackendCuda) return;
  for (void*& event : events_) event = device::create_event();
}

Timer::~Timer() {
  for (void* event : events_) {
    if (event != nullptr) device::destroy_event(event);
  }
}

void Timer::start(Stream& stream) {
  if (backend_ == hepBackendCuda) device::record_event(events_[0], stream.get());
  times_[0] = std::chrono::steady_clock::now();
}

void Timer::stop(Stream& stream) {
  if (backend_ == hepBackendCuda) device::record_event(events_[1], stream.get());
  times_[1] = std::chrono::steady_clock::now();
}

double Timer::milliseconds() const {
  if (backend_ == hepBackendCuda) return device::elapsed_milliseconds(events_[0], events_[1]);
  return std::chrono::duration<double, std::milli>(times_[1] - times_[0]).count();
}

}  // namespace harness
