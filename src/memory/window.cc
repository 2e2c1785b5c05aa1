// SPDX-License-Identifier: Apache-2.0
#include "memory/window.h"

#include "base/identity.h"
#include "memory/local_allocations.h"
#include "memory/peer_memory.h"

namespace hep {

Status Window::create(MemoryKind kind, int device, size_t bytes, std::unique_ptr<Window>* out) {
  if (bytes == 0) return error(hepErrorInvalidArgument, "a window must have at least 1 byte");
  const MemoryKindOperations* operations = nullptr;
  HEP_TRY(find_memory_kind(kind, &operations));
  std::unique_ptr<Window> window(new Window(kind, device, bytes));
  HEP_TRY(random_bytes(&window->id_, sizeof window->id_));
  HEP_TRY(operations->allocate(device, bytes, &window->own_));
  if (passes_descriptors(kind))
    HEP_TRY(DescriptorChannel::open(window->own_->descriptor(), &window->channel_));
  LocalAllocations::instance().add(window->id_, window->own_);
  *out = std::move(window);
  return Status();
}

Window::Window(MemoryKind kind, int device, size_t bytes)
    : kind_(kind), device_(device), bytes_(bytes) {}

Window::~Window() {
  while (!peers_.empty()) peers_.pop_back();
  LocalAllocations::instance().remove(id_);
  channel_.reset();
  own_.reset();
}

WindowHandle Window::handle() const {
  WindowHandle handle{};
  handle.window = id_;
  handle.process = process_identity();
  handle.host = host_identity();
  handle.bytes = bytes_;
  handle.kind = kind_;
  if (channel_) handle.descriptor = channel_->address();
  own_->describe(&handle);
  return handle;
}

Status Window::connect(const std::vector<WindowHandle>& handles, int rank, Deadline deadline) {
  HEP_TRY(check(handles, rank));
  rank_ = rank;
  return map_peers(device_, rank, handles, channel_.get(), deadline, &peers_);
}

Status Window::check(const std::vector<WindowHandle>& handles, int rank) const {
  if (rank_ >= 0) return error(hepErrorInternal, "rank %d connects its window twice", rank);
  if (rank < 0 || rank >= static_cast<int>(handles.size()) || handles[rank].window != id_)
    return error(hepErrorInternal, "rank %d is not among the %zu windows to connect", rank,
                 handles.size());
  for (size_t peer = 0; peer < handles.size(); ++peer) {
    const WindowHandle& handle = handles[peer];
    if (!is_shared(handle)) continue;
    if (handle.kind != kind_)
      return error(hepErrorMismatch, "rank %d and rank %zu differ in their kind of memory (%s, %s)",
                   rank, peer, memory_kind_name(kind_), memory_kind_name(handle.kind));
    if (handle.bytes != bytes_)
      return error(hepErrorMismatch,
                   "rank %d and rank %zu differ in the size of windows (%zu, %llu)", rank, peer,
                   bytes_, static_cast<unsigned long long>(handle.bytes));
    if (kind_ != MemoryKind::cuda_fabric && handle.host != host_identity())
      return error(hepErrorUnreachable,
                   "rank %d cannot map the memory of rank %zu: kind %s does not reach other hosts",
                   rank, peer, memory_kind_name(kind_));
  }
  return Status();
}

void Window::release_descriptors() {
  channel_.reset();
  own_->close_descriptor();
}

void* Window::address(int rank) const {
  if (rank < 0 || rank >= static_cast<int>(peers_.size())) return nullptr;
  if (rank == rank_) return own_->address();
  return peers_[rank] ? peers_[rank]->address() : nullptr;
}

}  // namespace hep
