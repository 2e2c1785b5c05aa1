// SPDX-License-Identifier: Apache-2.0
#include "comm/comm.h"

#include <cinttypes>
#include <utility>
#include <vector>

#include "backend/cuda/plan.h"
#include "gpu/device.h"
#include "protocol/at.h"
#include "protocol/failure.h"
#include "protocol/shape.h"

namespace hep {

Status check_comm(hepComm_t& comm) {
  if (comm == nullptr) return error(hepErrorInvalidArgument, "comm is NULL");
  void* const object = find_object(HandleKind::kComm, comm);
  if (object == nullptr)
    return error(hepErrorInvalidArgument, "comm %p is not a communicator, or has been destroyed",
                 static_cast<void*>(comm));
  comm = static_cast<hepComm*>(object);
  return Status();
}

Status destroy_comm(hepComm_t comm) {
  if (comm->num_routings() > 0)
    return error(hepErrorInvalidUsage, "%d routings of this communicator are alive",
                 comm->num_routings());
  delete comm;
  return Status();
}

hepLimits_t limits_of(const hepComm& comm) {
  const Lane& lane = comm.lanes.front();
  const Shape& shape = lane.shape;
  const bool cuda = comm.config.backend == hepBackendCuda;
  hepLimits_t limits = HEP_LIMITS_INITIALIZER;
  limits.max_tokens = shape.max_tokens;
  limits.max_top_k = shape.max_top_k;
  limits.num_experts = shape.num_experts;
  limits.num_local_experts = shape.num_local_experts();
  limits.row_bytes = shape.row_bytes;
  limits.max_flat_rows = static_cast<int64_t>(shape.num_ranks) * shape.max_tokens;
  limits.max_expert_rows = limits.max_flat_rows * shape.max_top_k;
  const Profile& profile = profile_of(comm.capability_major);
  const Plan plan = cuda ? make_plan(lane, profile) : Plan{};
  limits.routing_blocks = plan.routing_blocks;
  limits.dispatch_blocks = plan.dispatch_blocks;
  limits.combine_blocks = plan.combine_blocks;
  limits.timeout_ms = comm.config.timeout_ms;
  limits.lanes = num_lanes(comm.config, hepModeThroughput);
  limits.low_latency_lanes = num_lanes(comm.config, hepModeLowLatency);
  if (limits.low_latency_lanes == 0) return limits;
  limits.low_latency_tokens = comm.config.low_latency_tokens;
  limits.low_latency_blocks = cuda ? most_blocks(make_plan(comm.lanes.back(), profile)) : 0;
  return limits;
}

Status async_error(const hepComm& comm) {
  HEP_TRY(comm.check());
  const Backend::BadIndex bad = comm.backend->bad_index();
  if (bad.found && bad.k < 0)
    return error(hepErrorInvalidArgument,
                 "rank %d: the map of token %" PRId64 " selects %" PRId64
                 " experts, which is more than top_k; those past the first top_k do not count",
                 comm.rank, bad.token, bad.value);
  if (bad.found)
    return error(hepErrorInvalidArgument,
                 "rank %d: token %" PRId64 ", selection %" PRId64 " has expert id %" PRId64
                 ", must be -1 to %d; it counts as -1",
                 comm.rank, bad.token, bad.k, bad.value, comm.config.num_experts - 1);
  const Backend::Overflow overflow = comm.backend->overflow();
  if (overflow.found)
    return error(
        hepErrorOverflow,
        "rank %d: %s needed a capacity of %" PRId64 ", but had %" PRId64
        "; the rows past it were dropped",
        comm.rank,
        operation_text(hepOperationDispatch, overflow.number, overflow.mode, overflow.lane).c_str(),
        overflow.needed, overflow.capacity);
  return Status();
}

Status allocate_memory(hepComm_t comm, size_t bytes, void** pointer) {
  uint64_t offset;
  if (!comm->heap->allocate(bytes, &offset))
    return error(hepErrorOutOfMemory,
                 "hepMemAlloc of %zu bytes: the largest free block of the heap has %" PRIu64
                 " bytes (config heap_bytes is %" PRId64 ")",
                 bytes, comm->heap->largest_free_block(), comm->config.heap_bytes);
  *pointer = static_cast<char*>(comm->heap_address()) + offset;
  return Status();
}

Status free_memory(hepComm_t comm, void* pointer) {
  const uintptr_t base = reinterpret_cast<uintptr_t>(comm->heap_address());
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  if (address < base || !comm->heap->free(address - base))
    return error(hepErrorInvalidArgument, "pointer %p is not from hepMemAlloc of this communicator",
                 pointer);
  return Status();
}

}  // namespace hep

hepComm::~hepComm() {
  health.reset();  // or it would tell the peers of waits that end here as of a failure
  if (backend) backend->abort();
}

void* hepComm::heap_address() const {
  const hep::Lane& lane = lanes.front();
  return hep::at<char>(window->address(rank), lane.offset + lane.window_layout.heap);
}

void hepComm::set_lanes(std::vector<hep::Lane> made) {
  lanes = std::move(made);
  split_.resize(lanes.size());
}

void hepComm::remove_routing(int lane, const hepRouting* routing) {
  if (split_[lane] == routing) end_split(lane);
  --num_routings_;
}
