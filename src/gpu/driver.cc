// SPDX-License-Identifier: Apache-2.0
#include "gpu/driver.h"

namespace hep {
namespace {

Status find_function(const char* name, unsigned int version, void** function) {
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t result =
      cudaGetDriverEntryPointByVersion(name, function, version, cudaEnableDefault, &found);
  if (result != cudaSuccess) {
    const Status status = cuda_status(result, "the CUDA driver cannot be used");
    return Status(hepErrorUnsupported, status.message());
  }
  if (found != cudaDriverEntryPointSuccess || *function == nullptr)
    return error(hepErrorUnsupported, "the CUDA driver is too old: it has no %s of CUDA %u.%u",
                 name, version / 1000, version % 1000 / 10);
  return Status();
}

Status load(DriverTable* table) {
#define HEP_DRIVER_FIND(name, version) \
  HEP_TRY(find_function("cu" #name, version, reinterpret_cast<void**>(&table->name)));
  HEP_DRIVER_FUNCTIONS(HEP_DRIVER_FIND)
#undef HEP_DRIVER_FIND
  if (const CUresult result = table->Init(0); result != CUDA_SUCCESS) {
    const char* text = nullptr;
    table->GetErrorString(result, &text);
    return error(hepErrorUnsupported, "the CUDA driver cannot be used: cuInit: %s (%d)",
                 text != nullptr ? text : "unknown error", static_cast<int>(result));
  }
  return Status();
}

struct Driver {
  Driver() : status(load(&table)) {}

  DriverTable table{};
  Status status;
};

// This is never destroyed, because memory may be freed at exit.
const Driver& loaded_driver() {
  static const Driver* const instance = new Driver;
  return *instance;
}

}  // namespace

Status driver(const DriverTable** table) {
  HEP_TRY(loaded_driver().status);
  *table = &loaded_driver().table;
  return Status();
}

Status cuda_status(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return Status();
  cudaGetLastError();
  hepResult_t code = hepErrorCuda;
  if (result == cudaErrorMemoryAllocation) code = hepErrorOutOfMemory;
  if (result == cudaErrorNoDevice || result == cudaErrorInsufficientDriver ||
      result == cudaErrorSystemDriverMismatch || result == cudaErrorStubLibrary)
    code = hepErrorUnsupported;
  return error(code, "%s: %s (%s)", what, cudaGetErrorString(result), cudaGetErrorName(result));
}

Status driver_status(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return Status();
  const char *text = nullptr, *name = nullptr;
  const DriverTable* table = nullptr;
  if (driver(&table).ok()) {
    table->GetErrorString(result, &text);
    table->GetErrorName(result, &name);
  }
  hepResult_t code = hepErrorCuda;
  if (result == CUDA_ERROR_OUT_OF_MEMORY) code = hepErrorOutOfMemory;
  if (result == CUDA_ERROR_NO_DEVICE) code = hepErrorUnsupported;
  return error(code, "%s: %s (%s)", what, text != nullptr ? text : "unknown error",
               name != nullptr ? name : std::to_string(result).c_str());
}

Status allocation_status(const Status& status, int device, size_t bytes) {
  if (status.result() != hepErrorOutOfMemory) return status;
  return error(hepErrorOutOfMemory, "device %d has no room for %zu bytes: %s", device, bytes,
               status.message().c_str());
}

}  // namespace hep
