// SPDX-License-Identifier: Apache-2.0
// The memory that ranks share: each rank owns one window and maps those of all others. What lies
// above sees addresses; how memory is allocated, exported and mapped is known in this folder alone.
#pragma once

#include <hybridep.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "base/deadline.h"
#include "base/identity.h"
#include "base/status.h"
#include "memory/descriptor_channel.h"

namespace hep {

class Allocation;
class Mapping;

enum class MemoryKind : uint32_t {
  host_descriptor = 0,  // host memory without a name, passed as a file descriptor
  cuda_descriptor = 1,  // device memory, passed as a file descriptor
  cuda_ipc = 2,         // device memory, passed as a cudaIpc handle
  cuda_fabric = 3       // device memory, passed as a fabric handle, to other hosts too
};

const char* memory_kind_name(MemoryKind kind);

constexpr uint32_t memory_kind_bit(MemoryKind kind) { return 1u << static_cast<uint32_t>(kind); }

// The kinds of a backend that work on this device, as a set of memory_kind_bit(). Each is tried, until it
// has worked once, with a small allocation, which is exported and mapped again: what attributes claim is
// not enough. For the cuda backend the setting HEP_MEMORY narrows the set. HEP_LOG=debug tells why a kind
// is missing. hepErrorOutOfMemory where there is no room to find out.
Status probe_memory_kinds(hepBackend_t backend, int device, uint32_t* mask);

// What came of trying a kind.
struct MemoryTrial {
  MemoryKind kind;
  Status status;
};

// The set of those that worked. If none did, and one for want of memory, that is the error: it says nothing
// of the kind.
Status working_memory_kinds(const std::vector<MemoryTrial>& trials, uint32_t* mask);

// The kind that all ranks use: the first that every rank has. Across hosts that is fabric; within one
// descriptor, ipc, fabric. A pure function of what all ranks know, so all come to the same result.
// `masks` [R] are the ranks' probe_memory_kinds(). The error names a rank for each missing kind:
// hepErrorUnreachable across hosts, hepErrorUnsupported within one.
Status choose_memory_kind(hepBackend_t backend, const std::vector<uint32_t>& masks,
                          bool several_hosts, MemoryKind* kind);

// How others reach a window: plain bytes, to be all-gathered.
struct WindowHandle {
  uint64_t window;   // random: tells windows apart
  uint64_t process;  // process_identity()
  uint64_t host;     // host_identity()
  uint64_t bytes;    // as given to Window::create
  uint64_t mapped_bytes;
  MemoryKind kind;
  uint32_t reserved;
  DescriptorAddress descriptor;  // of the two descriptor kinds
  unsigned char exported[64];    // the cudaIpc or fabric handle
};
static_assert(std::is_trivially_copyable_v<WindowHandle>);

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

  // Maps the windows of all peers. Collective, once; `handles` [R] are those of all ranks. Every rank
  // tries all its peers, also after a failure, so no rank waits longer than it must.
  // hepErrorUnreachable  names each pair of ranks whose devices cannot map each other's memory
  // hepErrorMismatch     windows differ in kind or size
  // hepErrorPeerLost     a peer's window or process is gone
  // hepErrorTimeout      names the ranks that did not take part
  // The window can only be destroyed after an error.
  Status connect(const std::vector<WindowHandle>& handles, int rank, Deadline deadline);

  // Closes sockets and descriptors that were needed for connecting. The caller has made sure that all
  // ranks have connected.
  void release_descriptors();

  // Where this rank sees a rank's window, its own included; NULL before connect().
  void* address(int rank) const;

  size_t bytes() const { return bytes_; }

 private:
  Window(MemoryKind kind, int device, size_t bytes);

  Status check(const std::vector<WindowHandle>& handles, int rank) const;
  Status map(const WindowHandle& handle, int peer, int descriptor);
  Status map_all(const std::vector<WindowHandle>& handles, Deadline deadline);

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
