// SPDX-License-Identifier: Apache-2.0
// Every exported function: check the handles, call, return.
#include <hybridep.h>
#include <pthread.h>

#include <exception>
#include <memory>
#include <new>
#include <utility>

#include "base/status.h"
#include "bootstrap/bootstrap.h"
#include "comm/comm.h"
#include "comm/create.h"
#include "comm/routing.h"
#include "config/abi.h"
#include "config/config.h"
#include "config/settings.h"

namespace hep {
namespace {

// The environment says which messages the user wants; it is read at the first call.
void apply_log_level_once() {
  static const bool applied = (apply_log_level(), true);
  static_cast<void>(applied);
}

// A thread that waits in a call is cancelled after it. Cancellation unwinds the stack, which would
// leave the library's state as it was in the midst of the call.
class CancellationHeld {
 public:
  CancellationHeld() noexcept { ::pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before_); }
  ~CancellationHeld() { ::pthread_setcancelstate(before_, nullptr); }
  CancellationHeld(const CancellationHeld&) = delete;
  CancellationHeld& operator=(const CancellationHeld&) = delete;

 private:
  int before_ = PTHREAD_CANCEL_ENABLE;
};

// Runs the body of an API call: no exception leaves the library, and every error is remembered.
template <typename Body>
hepResult_t call(Body body) noexcept {
  const CancellationHeld held;
  try {
    apply_log_level_once();
    return report(body());
  } catch (const std::bad_alloc&) {
    return report(hepErrorOutOfMemory, "out of host memory");
  } catch (const std::exception& exception) {
    return report(hepErrorInternal, exception.what());
  } catch (...) {  // a callback of the caller's may throw anything
    return report(hepErrorInternal, "an exception of unknown type");
  }
}

Status check_output(const void* pointer, const char* name) {
  if (pointer == nullptr) return error(hepErrorInvalidArgument, "%s is NULL", name);
  return Status();
}

// A query of a communicator that writes one value.
template <typename T, typename Value>
hepResult_t query(hepComm_t comm, T* output, const char* name, Value value) {
  return call([&]() -> Status {
    HEP_TRY(check_comm(comm));
    HEP_TRY(check_output(output, name));
    *output = value(*comm);
    return Status();
  });
}

// Creates a communicator after some means of agreeing on a unique id.
template <typename Create>
hepResult_t create(hepComm_t* comm, Create create_with) {
  return call([&]() -> Status {
    HEP_TRY(check_output(comm, "comm"));
    *comm = nullptr;
    std::unique_ptr<hepComm> created;
    HEP_TRY(create_with(&created));
    *comm = release_to_caller(std::move(created));
    return Status();
  });
}

}  // namespace
}  // namespace hep

using namespace hep;

const char* hepGetErrorString(hepResult_t result) {
  switch (result) {
    case hepSuccess: return "hepSuccess";
    case hepErrorInvalidArgument: return "hepErrorInvalidArgument";
    case hepErrorInvalidUsage: return "hepErrorInvalidUsage";
    case hepErrorUnsupported: return "hepErrorUnsupported";
    case hepErrorOutOfMemory: return "hepErrorOutOfMemory";
    case hepErrorSystem: return "hepErrorSystem";
    case hepErrorCuda: return "hepErrorCuda";
    case hepErrorMismatch: return "hepErrorMismatch";
    case hepErrorUnreachable: return "hepErrorUnreachable";
    case hepErrorTimeout: return "hepErrorTimeout";
    case hepErrorAborted: return "hepErrorAborted";
    case hepErrorPeerLost: return "hepErrorPeerLost";
    case hepErrorInternal: return "hepErrorInternal";
    case hepErrorOverflow: return "hepErrorOverflow";
    case hepErrorNetwork: return "hepErrorNetwork";
  }
  return "unknown result";
}

const char* hepGetLastError(void) { return last_error(); }

hepResult_t hepGetVersion(int* version) {
  return call([&]() -> Status {
    HEP_TRY(check_output(version, "version"));
    *version = HEP_VERSION;
    return Status();
  });
}

hepResult_t hepConfigCheck(const hepConfig_t* config, int num_ranks) {
  return call([&] {
    hepConfig_t resolved;
    return resolve_config(config, num_ranks, &resolved);
  });
}

hepResult_t hepWorkspaceSize(const hepConfig_t* config, int num_ranks, hepWorkspace_t* workspace) {
  return call([&]() -> Status {
    HEP_TRY(check_output_struct(workspace, HEP_WORKSPACE_MAGIC, "hepWorkspace_t"));
    hepConfig_t resolved;
    HEP_TRY(resolve_config(config, num_ranks, &resolved));
    const hepWorkspace_t mine = make_workspace(resolved, num_ranks);
    write_struct(&mine, sizeof mine, workspace);
    return Status();
  });
}

hepResult_t hepGetUniqueId(hepUniqueId_t* id) {
  return call([&]() -> Status {
    HEP_TRY(check_output(id, "id"));
    return create_unique_id(id);
  });
}

hepResult_t hepCommInitRank(hepComm_t* comm, int num_ranks, const hepUniqueId_t* id, int rank,
                            const hepConfig_t* config) {
  return create(comm, [&](std::unique_ptr<hepComm>* created) -> Status {
    HEP_TRY(check_output(id, "id"));
    return create_comm(*id, rank, num_ranks, config, created);
  });
}

hepResult_t hepCommInitAll(hepComm_t* comms, int num_ranks, const int* devices,
                           const hepConfig_t* config) {
  return call([&]() -> Status {
    HEP_TRY(check_output(comms, "comms"));
    return create_all_comms(num_ranks, devices, config, comms);
  });
}

hepResult_t hepCommInitCallback(hepComm_t* comm, int num_ranks, int rank, hepAllGather_t all_gather,
                                void* context, const hepConfig_t* config) {
  return call([&]() -> Status {
    const Status own = check_output(comm, "comm");  // which the peers must learn, too
    if (own.ok()) *comm = nullptr;
    std::unique_ptr<hepComm> created;
    HEP_TRY(create_comm_over_callback(all_gather, context, rank, num_ranks, own, config, &created));
    *comm = release_to_caller(std::move(created));
    return Status();
  });
}

hepResult_t hepCommInitNccl(hepComm_t* comm, struct ncclComm* nccl, const hepConfig_t* config) {
  return create(comm, [&](std::unique_ptr<hepComm>* created) -> Status {
    HEP_TRY(check_output(nccl, "nccl"));
    return create_comm_over_nccl(nccl, config, created);
  });
}

hepResult_t hepCommDestroy(hepComm_t comm) {
  return call([&]() -> Status {
    if (comm == nullptr) return Status();
    HEP_TRY(check_comm(comm));
    return destroy_comm(comm);
  });
}

hepResult_t hepCommAbort(hepComm_t comm) {
  return call([&]() -> Status {
    HEP_TRY(check_comm(comm));
    comm->abort();
    return Status();
  });
}

hepResult_t hepCommCount(hepComm_t comm, int* num_ranks) {
  return query(comm, num_ranks, "num_ranks", [](const hepComm& c) { return c.num_ranks(); });
}

hepResult_t hepCommUserRank(hepComm_t comm, int* rank) {
  return query(comm, rank, "rank", [](const hepComm& c) { return c.rank(); });
}

hepResult_t hepCommDevice(hepComm_t comm, int* device) {
  return query(comm, device, "device", [](const hepComm& c) { return c.device(); });
}

hepResult_t hepCommBackend(hepComm_t comm, hepBackend_t* backend) {
  return query(comm, backend, "backend",
               [](const hepComm& c) { return static_cast<hepBackend_t>(c.config().backend); });
}

hepResult_t hepCommLimits(hepComm_t comm, hepLimits_t* limits) {
  return call([&]() -> Status {
    HEP_TRY(check_comm(comm));
    HEP_TRY(check_output_struct(limits, HEP_LIMITS_MAGIC, "hepLimits_t"));
    const hepLimits_t mine = comm->limits();
    write_struct(&mine, sizeof mine, limits);
    return Status();
  });
}

hepResult_t hepMemAlloc(hepComm_t comm, size_t bytes, void** pointer) {
  return call([&]() -> Status {
    HEP_TRY(check_comm(comm));
    HEP_TRY(check_output(pointer, "pointer"));
    *pointer = nullptr;
    return comm->allocate(bytes, pointer);
  });
}

hepResult_t hepMemFree(hepComm_t comm, void* pointer) {
  return call([&]() -> Status {
    HEP_TRY(check_comm(comm));
    if (pointer == nullptr) return Status();
    return comm->free(pointer);
  });
}

hepResult_t hepCommRegister(hepComm_t comm, void* pointer, size_t bytes) {
  return call([&]() -> Status {
    HEP_TRY(check_comm(comm));
    return comm->register_memory(pointer, bytes);
  });
}

hepResult_t hepCommDeregister(hepComm_t comm, void* pointer) {
  return call([&]() -> Status {
    HEP_TRY(check_comm(comm));
    return comm->deregister_memory(pointer);
  });
}

hepResult_t hepCommGetAsyncError(hepComm_t comm, hepResult_t* result) {
  return call([&]() -> Status {
    HEP_TRY(check_comm(comm));
    HEP_TRY(check_output(result, "error"));
    *result = report(comm->async_error());
    return Status();
  });
}

hepResult_t hepCommGetFailure(hepComm_t comm, hepFailure_t* failure) {
  return call([&]() -> Status {
    HEP_TRY(check_comm(comm));
    HEP_TRY(check_output_struct(failure, HEP_FAILURE_MAGIC, "hepFailure_t"));
    const hepFailure_t mine = comm->failure();
    write_struct(&mine, sizeof mine, failure);
    return Status();
  });
}

hepResult_t hepRoutingMemoryBytes(hepComm_t comm, const hepRoutingConfig_t* config,
                                  uint64_t* bytes) {
  return call([&]() -> Status {
    HEP_TRY(check_comm(comm));
    HEP_TRY(check_output(bytes, "bytes"));
    return hepRouting::memory_bytes(*comm, config, bytes);
  });
}

hepResult_t hepRoutingCreate(hepRouting_t* routing, hepComm_t comm,
                             const hepRoutingConfig_t* config) {
  return call([&]() -> Status {
    HEP_TRY(check_output(routing, "routing"));
    *routing = nullptr;
    HEP_TRY(check_comm(comm));
    std::unique_ptr<hepRouting> created;
    HEP_TRY(hepRouting::create(*comm, config, &created));
    *routing = release_to_caller(std::move(created));
    return Status();
  });
}

hepResult_t hepRoutingDestroy(hepRouting_t routing) {
  return call([&]() -> Status {
    if (routing == nullptr) return Status();
    HEP_TRY(check_routing(routing));
    return destroy_routing(routing);
  });
}

hepResult_t hepRoutingUpdate(hepRouting_t routing, const hepUpdate_t* update, hepStream_t stream) {
  return call([&]() -> Status {
    HEP_TRY(check_routing(routing));
    return routing->update(update, stream);
  });
}

hepResult_t hepRoutingGetView(hepRouting_t routing, hepRoutingView_t* view) {
  return call([&]() -> Status {
    HEP_TRY(check_routing(routing));
    return routing->view(view);
  });
}

hepResult_t hepRoutingQuery(hepRouting_t routing, hepRoutingCounts_t* counts, hepStream_t stream) {
  return call([&]() -> Status {
    HEP_TRY(check_routing(routing));
    return routing->query(counts, stream);
  });
}

hepResult_t hepDispatch(hepRouting_t routing, const hepDispatchArgs_t* args, hepStream_t stream) {
  return call([&]() -> Status {
    HEP_TRY(check_routing(routing));
    return routing->dispatch(args, Step::kWhole, stream);
  });
}

hepResult_t hepDispatchSend(hepRouting_t routing, const hepDispatchArgs_t* args,
                            hepStream_t stream) {
  return call([&]() -> Status {
    HEP_TRY(check_routing(routing));
    return routing->dispatch(args, Step::kSend, stream);
  });
}

hepResult_t hepDispatchReceive(hepRouting_t routing, hepStream_t stream) {
  return call([&]() -> Status {
    HEP_TRY(check_routing(routing));
    return routing->receive(hepOperationDispatch, stream);
  });
}

hepResult_t hepCombine(hepRouting_t routing, const hepCombineArgs_t* args, hepStream_t stream) {
  return call([&]() -> Status {
    HEP_TRY(check_routing(routing));
    return routing->combine(args, Step::kWhole, stream);
  });
}

hepResult_t hepCombineSend(hepRouting_t routing, const hepCombineArgs_t* args, hepStream_t stream) {
  return call([&]() -> Status {
    HEP_TRY(check_routing(routing));
    return routing->combine(args, Step::kSend, stream);
  });
}

hepResult_t hepCombineReceive(hepRouting_t routing, hepStream_t stream) {
  return call([&]() -> Status {
    HEP_TRY(check_routing(routing));
    return routing->receive(hepOperationCombine, stream);
  });
}
