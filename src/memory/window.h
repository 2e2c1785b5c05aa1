// SPDX-License-Identifier: Apache-2.0
// The memory that ranks share: each rank owns one window and maps those of all others. What lies
// above sees addresses; how memory is allocated, exported and mapped is known in this folder alone.
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

// A rank's window and its view of its peers'. Used by one thread at a time.
class Window {
 public:
  // Allocates at least `bytes` zeroed bytes, aligned to pages. Local. `device` is not read by the
  // host kind.
  static Status create(MemoryKind kind, int device, size_t bytes, std::unique_ptr<Window>* out);

  // Unmaps the peers' memory and frees this rank's. Never waits for peers. Descriptor and fabric
  // memory lives on for peers that have it mapped, and so does any for those of the same process.
  ~Window();

  WindowHandle handle() const;

  // Maps the windows of all peers, as map_peers() does. Collective, once.
  // hepErrorUnreachable  names each pair of ranks whose devices cannot map each other's memory
  // hepErrorMismatch     windows differ in kind or size
  // hepErrorPeerLost     a peer's window or process is gone
  // hepErrorTimeout      names the ranks that did not take part
  // The window can only be destroyed after an error.
  Status connect(const std::vector<WindowHandle>& handles, int rank, Deadline deadline);

  // Closes sockets and descriptors that were needed for connecting. The caller has made sure that
  // all ranks have connected.
  void release_descriptors();

  // Where this rank sees a rank's window, its own included; NULL before connect().
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
