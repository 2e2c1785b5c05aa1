// SPDX-License-Identifier: Apache-2.0
// The functions of CUDA that the harness needs. device_cuda.cc has them, or device_none.cc in a
// build without CUDA. They throw std::runtime_error if they fail.
#pragma once

#include <hybridep.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace harness::device {

int count();  // the devices, if all have compute capability 9.0 or newer
void set_current(int device);
void reset();  // resets the current device, which ends its context and all that was made in it

// Returns the name that a device has in every process. Its number means something in one process
// only.
using Uuid = std::array<char, 16>;
Uuid uuid(int device);
int current();
int num_sms();  // of the current device

void* allocate(size_t bytes);  // on the current device
void release(void* pointer, size_t bytes);
void free_unused();      // frees the blocks that were released on the current device
size_t memory_in_use();  // of the current device, by all processes

void* allocate_managed(size_t bytes);  // host and devices share this memory page by page
void release_managed(void* pointer);

// Take all but about `left` bytes of the current device's memory, and give it back.
void take_rest(size_t left);
void return_rest();

// Memory of the driver's virtual memory management. If it is `shareable`, others can import its
// handles.
void* allocate_virtual(size_t bytes, bool shareable);
void release_virtual(void* pointer);

void copy(void* to, const void* from, size_t bytes);  // synchronous
void fill(void* to, unsigned char byte, size_t bytes);

hepStream_t create_stream();  // does not wait for the legacy stream
void destroy_stream(hepStream_t stream);
void synchronize(hepStream_t stream);
void copy_on(hepStream_t stream, void* to, const void* from, size_t bytes);
void fill_on(hepStream_t stream, void* to, unsigned char byte, size_t bytes);

// Adds the number of places in which the two differ to *counter in device memory.
void count_differences_on(hepStream_t stream, const void* a, const void* b, size_t bytes,
                          uint64_t* counter);

void begin_capture(hepStream_t stream, bool global);       // otherwise of the calling thread
void* end_capture(hepStream_t stream, size_t* num_nodes);  // an executable graph
void launch_graph(void* executable, hepStream_t stream);
void destroy_graph(void* executable);

void* create_event();
void destroy_event(void* event);
void record_event(void* event, hepStream_t stream);
double elapsed_milliseconds(void* start, void* stop);  // waits for `stop`

}  // namespace harness::device
