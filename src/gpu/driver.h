// SPDX-License-Identifier: Apache-2.0
// Finds the CUDA driver at run time, so that the library loads on machines without one. Checks the
// results of calls of the driver and of the runtime.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "base/status.h"

// Lists the driver functions in use, without their "cu". Each has the CUDA version of its
// signature.
#define HEP_DRIVER_FUNCTIONS(X)                  \
  X(Init, 2000)                                  \
  X(GetErrorName, 6000)                          \
  X(GetErrorString, 6000)                        \
  X(DeviceGet, 2000)                             \
  X(DeviceGetUuid, 11040)                        \
  X(DeviceCanAccessPeer, 4000)                   \
  X(DevicePrimaryCtxRetain, 7000)                \
  X(DevicePrimaryCtxRelease, 11000)              \
  X(DevicePrimaryCtxGetState, 7000)              \
  X(CtxPushCurrent, 4000)                        \
  X(CtxPopCurrent, 4000)                         \
  X(CtxGetId, 12000)                             \
  X(CtxEnablePeerAccess, 4000)                   \
  X(StreamCreate, 2000)                          \
  X(StreamSynchronize, 2000)                     \
  X(StreamDestroy, 4000)                         \
  X(ThreadExchangeStreamCaptureMode, 10010)      \
  X(EventCreate, 2000)                           \
  X(EventRecord, 2000)                           \
  X(EventQuery, 2000)                            \
  X(EventDestroy, 4000)                          \
  X(MemsetD8Async, 3020)                         \
  X(MemAlloc, 3020)                              \
  X(MemFree, 3020)                               \
  X(MemCreate, 10020)                            \
  X(MemRelease, 10020)                           \
  X(MemAddressReserve, 10020)                    \
  X(MemAddressFree, 10020)                       \
  X(MemMap, 10020)                               \
  X(MemUnmap, 10020)                             \
  X(MemSetAccess, 10020)                         \
  X(MemGetAllocationGranularity, 10020)          \
  X(MemExportToShareableHandle, 10020)           \
  X(MemImportFromShareableHandle, 10020)         \
  X(MemRetainAllocationHandle, 11000)            \
  X(MemGetAllocationPropertiesFromHandle, 10020) \
  X(MemGetAddressRange, 3020)                    \
  X(PointerGetAttribute, 4000)                   \
  X(IpcGetMemHandle, 4010)                       \
  X(IpcOpenMemHandle, 11000)                     \
  X(IpcCloseMemHandle, 4010)

namespace hep {

// Members are named as the driver names its functions: table.MemCreate is cuMemCreate.
struct DriverTable {
#define HEP_DRIVER_MEMBER(name, version) PFN_cu##name##_v##version name;
  HEP_DRIVER_FUNCTIONS(HEP_DRIVER_MEMBER)
#undef HEP_DRIVER_MEMBER
};

// Returns the driver. Loads and initialises it at the first call. hepErrorUnsupported if there is
// none, it is too old, or it finds no device. Thread-safe.
Status driver(const DriverTable** table);

// Returns the status of a call. Its sentence has the call and CUDA's own words. The result is
// hepErrorOutOfMemory, hepErrorUnsupported if no device can be used at all, or hepErrorCuda. The
// runtime's record of the last error belongs to the user, so a result of the runtime is cleared
// from it.
Status cuda_status(cudaError_t result, const char* what);
Status driver_status(CUresult result, const char* what);

// Adds to hepErrorOutOfMemory how many bytes of which device the caller asked for.
Status allocation_status(const Status& status, int device, size_t bytes);

}  // namespace hep

// Returns from the function if a call of the CUDA runtime, or of the driver, fails.
#define HEP_CUDA_TRY(call) HEP_TRY(::hep::cuda_status((call), #call))
#define HEP_DRIVER_TRY(table, function, ...) \
  HEP_TRY(::hep::driver_status((table).function(__VA_ARGS__), "cu" #function))
