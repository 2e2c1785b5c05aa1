// SPDX-License-Identifier: Apache-2.0
// What a kind of memory must do, for windows and registered memory.
#pragma once

#include <hybridep.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "base/descriptor.h"
#include "base/status.h"
#include "memory/descriptor_channel.h"

namespace hep {

enum class MemoryKind : uint32_t {
  host_descriptor = 0,  // host memory without a name, passed as a file descriptor
  cuda_descriptor = 1,  // device memory, passed as a file descriptor
  cuda_ipc = 2,         // device memory, passed as a cudaIpc handle
  cuda_fabric = 3       // device memory, passed as a fabric handle, to other hosts too
};

constexpr MemoryKind kMemoryKinds[] = {MemoryKind::host_descriptor, MemoryKind::cuda_descriptor,
                                       MemoryKind::cuda_ipc, MemoryKind::cuda_fabric};

const char* memory_kind_name(MemoryKind kind);

constexpr bool passes_descriptors(MemoryKind kind) {
  return kind == MemoryKind::host_descriptor || kind == MemoryKind::cuda_descriptor;
}

constexpr uint32_t memory_kind_bit(MemoryKind kind) { return 1u << static_cast<uint32_t>(kind); }

// Tells others how to reach a window. It is all-gathered as plain bytes.
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

// Whether the handle is that of a rank which takes part.
inline bool is_shared(const WindowHandle& handle) { return handle.process != 0; }

// Memory that this process has mapped. The destructor unmaps it.
class Mapping {
 public:
  Mapping() = default;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  virtual ~Mapping() = default;

  virtual void* address() const = 0;
};

// Memory of this rank, mapped here and ready to be mapped by others. It is freed when nobody has it
// mapped, unless it is borrowed.
class Allocation : public Mapping {
 public:
  // Fills the fields of the handle that only the kind knows: mapped_bytes and exported.
  virtual void describe(WindowHandle* handle) const = 0;

  // Returns the descriptor of a descriptor kind, otherwise -1.
  int descriptor() const { return descriptor_.get(); }
  void close_descriptor() { descriptor_.reset(); }

 protected:
  Descriptor descriptor_;
};

// What mapping a peer's memory takes besides its handle.
struct PeerMemory {
  const WindowHandle& handle;
  int descriptor;                            // of the descriptor kinds, lent; -1 otherwise
  const std::shared_ptr<Allocation>& local;  // the memory itself, if it is this process's own
};

struct MemoryKindOperations {
  MemoryKind kind;
  hepBackend_t backend;
  Status (*allocate)(int device, size_t bytes, std::shared_ptr<Allocation>* out);
  // Maps the memory for access by `device` of this process.
  Status (*map)(int device, const PeerMemory& peer, std::unique_ptr<Mapping>* out);
  // Describes a whole allocation of the caller's, which stays the caller's. NULL if the kind
  // cannot.
  Status (*borrow)(int device, uintptr_t address, size_t bytes, std::shared_ptr<Allocation>* out);
};

extern const MemoryKindOperations kHostDescriptorOperations;
extern const MemoryKindOperations kCudaDescriptorOperations;
extern const MemoryKindOperations kCudaIpcOperations;
extern const MemoryKindOperations kCudaFabricOperations;

// An allocation of device memory as the driver knows it.
struct DeviceRange {
  MemoryKind kind;  // how it can be shared
  uintptr_t begin;
  size_t bytes;
};

// Finds the allocation that holds memory of the caller's. hepErrorInvalidArgument if it is not
// memory of the device, or is longer than its allocation; hepErrorUnsupported if it cannot be
// shared.
Status find_device_range(int device, const void* pointer, size_t bytes, bool several_hosts,
                         DeviceRange* out);

// hepErrorUnsupported if this library was built without it.
Status find_memory_kind(MemoryKind kind, const MemoryKindOperations** out);

}  // namespace hep
