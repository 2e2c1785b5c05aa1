// SPDX-License-Identifier: Apache-2.0
// The memory that ranks share. Each rank owns one window and maps those of all others. Only this
// folder knows how memory is allocated, exported and mapped; higher floors see addresses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/deadline.h"
#include "base/status.h"
#include "memory/descriptor_channel.h"
#include "memory/kind.h"

namespace hep {

// A rank's window and its view of its peers' windows. One thread at a time may use it.
class Window {
 public:
  // Allocates at least `bytes` zeroed bytes, aligned to pages. The host kind ignores `device`.
  // Local.
  static Status create(MemoryKind kind, int device, size_t bytes, std::unique_ptr<Window>* out);

  // Unmaps the peers' memory and frees this rank's. Never waits for peers. Memory of descriptor and
  // fabric kinds lives on for peers that have it mapped; memory of every kind does for peers of the
  // same process.
  ~Window();

  WindowHandle handle() const;

  // Maps the windows of all peers, as map_peers() does. A handle of zeros stands for a rank that
  // does not share its window with this one. Collective, once. hepErrorUnreachable  names each pair
  // of ranks whose devices cannot map each other's memory hepErrorMismatch     windows differ in
  // kind or size hepErrorPeerLost     a peer's window or process is gone hepErrorTimeout      names
  // the ranks that did not take part The window can only be destroyed after an error.
  Status connect(const std::vector<WindowHandle>& handles, int rank, Deadline deadline);

  // Closes the sockets and descriptors that only connecting needs. The caller must know that all
  // ranks have connected.
  void release_descriptors();

  // Returns the address at which this rank sees a rank's window, its own included; NULL before
  // connect().
  void* address(int rank) const;

  size_t bytes() const { return bytes_; }

 private:
  Window(MemoryKind kind, int device, size_t bytes);

  Status check(const std::vector<WindowHandle>& handles, int rank) const;

  const MemoryKind kind_;
  const int device_;
  const size_t bytes_;
  uint64_t id_ = 0;
  int rank_ = -1;
  std::shared_ptr<Allocation> own_;
  std::unique_ptr<DescriptorChannel> channel_;
  std::vector<std::unique_ptr<Mapping>> peers_;
};

}  // namespace hep
