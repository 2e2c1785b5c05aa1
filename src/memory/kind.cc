// SPDX-License-Identifier: Apache-2.0
#include "memory/kind.h"

namespace hep {
namespace {

const MemoryKindOperations* const kKinds[] = {
    &kHostDescriptorOperations,
#ifdef HEP_HAVE_CUDA
    &kCudaDescriptorOperations,
    &kCudaIpcOperations,
    &kCudaFabricOperations,
#endif
};

}  // namespace

const char* memory_kind_name(MemoryKind kind) {
  switch (kind) {
    case MemoryKind::host_descriptor: return "host_descriptor";
    case MemoryKind::cuda_descriptor: return "cuda_descriptor";
    case MemoryKind::cuda_ipc: return "cuda_ipc";
    case MemoryKind::cuda_fabric: return "cuda_fabric";
  }
  return "unknown";
}

Status find_memory_kind(MemoryKind kind, const MemoryKindOperations** out) {
  for (const MemoryKindOperations* operations : kKinds) {
    if (operations->kind != kind) continue;
    *out = operations;
    return Status();
  }
  return error(hepErrorUnsupported, "memory of kind %s needs a library that was built with CUDA",
               memory_kind_name(kind));
}

}  // namespace hep
