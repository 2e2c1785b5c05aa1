// SPDX-License-Identifier: Apache-2.0
#include "host/host_backend.h"

#include <cstdlib>
#include <new>
#include <utility>

#include "host/host_routing.h"

namespace hep {

HostBackend::HostBackend(const BackendContext& context)
    : context_(context), waiter_(context.rank, context.timeout_ms) {}

Status HostBackend::create_routing(int alignment, std::unique_ptr<BackendRouting>* routing) {
  const uint64_t bytes = context_.routing_layout.total;
  HostRouting::Memory memory(std::calloc(bytes, 1));
  std::unique_ptr<BackendRouting> made;
  if (memory) made.reset(new (std::nothrow) HostRouting(*this, std::move(memory), alignment));
  if (!made)
    return error(hepErrorOutOfMemory, "rank %d: no memory for a routing of %llu bytes",
                 context_.rank, static_cast<unsigned long long>(bytes));
  *routing = std::move(made);
  return {};
}

Backend::BadIndex HostBackend::bad_index() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return bad_index_;
}

Backend::Overflow HostBackend::overflow() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return overflow_;
}

Status HostBackend::check_stream(hepStream_t stream) const {
  if (stream == nullptr) return {};
  return error(hepErrorInvalidArgument,
               "rank %d: stream is %p, but on the host backend it must be NULL", context_.rank,
               static_cast<void*>(stream));
}

Operation HostBackend::start(hepOperation_t kind) {
  return Operation(context_, waiter_, kind, ++epochs_[kind]);
}

void HostBackend::note_bad_index(int64_t token, int64_t k, int64_t value) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!bad_index_.found) bad_index_ = {true, token, k, value};
}

void HostBackend::note_overflow(uint64_t number, int64_t needed, int64_t capacity) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!overflow_.found) overflow_ = {true, number, needed, capacity};
}

Status create_host_backend(const BackendContext& context, std::unique_ptr<Backend>* backend) try {
  *backend = std::make_unique<HostBackend>(context);
  return {};
} catch (const std::bad_alloc&) {
  return error(hepErrorOutOfMemory, "rank %d: no memory for the host backend", context.rank);
}

}  // namespace hep
