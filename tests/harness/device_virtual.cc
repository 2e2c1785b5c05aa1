// SPDX-License-Identifier: Apache-2.0
// Memory of the driver's virtual memory management, as frameworks make it.
#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "device.h"

namespace harness::device {
namespace {

template <typename Function>
Function find(const char* name, unsigned int version) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  if (cudaGetDriverEntryPointByVersion(name, &function, version, cudaEnableDefault, &found) !=
          cudaSuccess ||
      function == nullptr)
    throw std::runtime_error(std::string("no ") + name);
  return reinterpret_cast<Function>(function);
}

void check(CUresult result, const char* call) {
  if (result != CUDA_SUCCESS)
    throw std::runtime_error(std::string(call) + ": " + std::to_string(result));
}

#define HARNESS_DRIVER(name, version) find<PFN_cu##name##_v##version>("cu" #name, version)

struct Block {
  size_t bytes;
  CUmemGenericAllocationHandle memory;
};

std::mutex mutex;

std::map<void*, Block>& blocks() {
  static std::map<void*, Block>* const instance = new std::map<void*, Block>;
  return *instance;
}

}  // namespace

void* allocate_virtual(size_t bytes, bool shareable) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.requestedHandleTypes =
      shareable ? CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR : CU_MEM_HANDLE_TYPE_NONE;
  if (cudaGetDevice(&properties.location.id) != cudaSuccess)
    throw std::runtime_error("no current device");
  size_t unit = 0;
  check(HARNESS_DRIVER(MemGetAllocationGranularity, 10020)(&unit, &properties,
                                                           CU_MEM_ALLOC_GRANULARITY_MINIMUM),
        "cuMemGetAllocationGranularity");
  Block block{(bytes + unit - 1) / unit * unit, 0};
  check(HARNESS_DRIVER(MemCreate, 10020)(&block.memory, block.bytes, &properties, 0),
        "cuMemCreate");
  CUdeviceptr address = 0;
  check(HARNESS_DRIVER(MemAddressReserve, 10020)(&address, block.bytes, 0, 0, 0),
        "cuMemAddressReserve");
  check(HARNESS_DRIVER(MemMap, 10020)(address, block.bytes, 0, block.memory, 0), "cuMemMap");
  CUmemAccessDesc access{properties.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  check(HARNESS_DRIVER(MemSetAccess, 10020)(address, block.bytes, &access, 1), "cuMemSetAccess");
  void* const pointer = reinterpret_cast<void*>(address);
  const std::lock_guard<std::mutex> lock(mutex);
  blocks()[pointer] = block;
  return pointer;
}

void release_virtual(void* pointer) {
  Block block{};
  {
    const std::lock_guard<std::mutex> lock(mutex);
    block = blocks().at(pointer);
    blocks().erase(pointer);
  }
  const auto address = reinterpret_cast<CUdeviceptr>(pointer);
  check(HARNESS_DRIVER(MemUnmap, 10020)(address, block.bytes), "cuMemUnmap");
  check(HARNESS_DRIVER(MemAddressFree, 10020)(address, block.bytes), "cuMemAddressFree");
  check(HARNESS_DRIVER(MemRelease, 10020)(block.memory), "cuMemRelease");
}

}  // namespace harness::device
