// SPDX-License-Identifier: Apache-2.0
// A machine without devices, for builds without CUDA.
#include <stdexcept>

#include "device.h"

namespace harness::device {
namespace {

[[noreturn]] void refuse() { throw std::runtime_error("the test harness was built without CUDA"); }

}  // namespace

int count() { return 0; }
void set_current(int) { refuse(); }
Uuid uuid(int) { refuse(); }
void reset() { refuse(); }
int current() { refuse(); }
int num_sms() { refuse(); }

void* allocate(size_t) { refuse(); }
void release(void*, size_t) {}
void free_unused() {}
size_t memory_in_use() { refuse(); }
void* allocate_managed(size_t) { refuse(); }
void release_managed(void*) {}
void take_rest(size_t) { refuse(); }
void return_rest() {}
void* allocate_virtual(size_t, bool) { refuse(); }
void release_virtual(void*) {}
void copy(void*, const void*, size_t) { refuse(); }
void fill(void*, unsigned char, size_t) { refuse(); }

hepStream_t create_stream() { refuse(); }
void destroy_stream(hepStream_t) {}
void synchronize(hepStream_t) { refuse(); }
void copy_on(hepStream_t, void*, const void*, size_t) { refuse(); }
void fill_on(hepStream_t, void*, unsigned char, size_t) { refuse(); }

void count_differences_on(hepStream_t, const void*, const void*, size_t, uint64_t*) { refuse(); }

void begin_capture(hepStream_t, bool) { refuse(); }
void* end_capture(hepStream_t, size_t*) { refuse(); }
void launch_graph(void*, hepStream_t) { refuse(); }
void destroy_graph(void*) {}

void* create_event() { refuse(); }
void destroy_event(void*) {}
void record_event(void*, hepStream_t) { refuse(); }
double elapsed_milliseconds(void*, void*) { refuse(); }

}  // namespace harness::device
