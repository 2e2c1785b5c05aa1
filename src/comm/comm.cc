// SPDX-License-Identifier: Apache-2.0
#include "comm/comm.h"

#include <algorithm>
#include <cinttypes>
#include <utility>

#include "comm/registration.h"
#include "gpu/device.h"
#include "protocol/at.h"
#include "protocol/failure.h"
#include "protocol/shape.h"

namespace hep {

CommParts::~CommParts() {
  // First: it would tell the peers of waits that end here as of a failure.
  if (health) health->stop_listening();
  network.reset();  // before `health`, which its proxy tells of failures
  health.reset();
  if (backend) backend->abort();
}

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
  HEP_TRY(comm->check_without_routings());
  delete comm;
  return Status();
}

namespace {

Status bad_index_status(const CommParts& parts, const Backend::BadIndex& bad) {
  if (bad.k < 0)
    return error(hepErrorInvalidArgument,
                 "rank %d: the map of token %" PRId64 " selects %" PRId64
                 " experts, which is more than top_k; those past the first top_k do not count",
                 parts.rank, bad.token, bad.value);
  return error(hepErrorInvalidArgument,
               "rank %d: token %" PRId64 ", selection %" PRId64 " has expert id %" PRId64
               ", must be -1 to %d; it counts as -1",
               parts.rank, bad.token, bad.k, bad.value, parts.config.num_experts - 1);
}

Status overflow_status(const CommParts& parts, const Backend::Overflow& overflow) {
  return error(
      hepErrorOverflow,
      "rank %d: %s needed a capacity of %" PRId64 ", but had %" PRId64
      "; the rows past it were dropped",
      parts.rank,
      operation_text(hepOperationDispatch, overflow.number, overflow.mode, overflow.lane).c_str(),
      overflow.needed, overflow.capacity);
}

// Tells the choices of the cuda backend. The host backend occupies no SMs.
void tell_blocks(const CommParts& parts, hepLimits_t* limits) {
  const Plan plan = make_plan(parts.lanes.front(), parts.gpu());
  limits->routing_blocks = plan.routing_blocks;
  limits->dispatch_blocks = plan.dispatch_blocks;
  limits->combine_blocks = plan.combine_blocks;
  const ChosenBlocks chosen = chosen_blocks(plan, parts.config);
  std::copy_n(chosen.dispatch, kNumLayouts, limits->layout_dispatch_blocks);
  std::copy_n(chosen.combine, kNumLayouts, limits->layout_combine_blocks);
  if (limits->low_latency_lanes > 0)
    limits->low_latency_blocks = most_blocks(make_plan(parts.lanes.back(), parts.gpu()));
}

}  // namespace
}  // namespace hep

using namespace hep;

hepComm::hepComm(std::unique_ptr<CommParts> parts)
    : parts_(std::move(parts)), open_(parts_->lanes.size()) {}

hepLimits_t hepComm::limits() const {
  const hepConfig_t& config = parts_->config;
  const Lane& lane = parts_->lanes.front();
  const Shape& shape = lane.shape;
  hepLimits_t limits = HEP_LIMITS_INITIALIZER;
  limits.max_tokens = shape.max_tokens;
  limits.max_top_k = shape.max_top_k;
  limits.num_experts = shape.num_experts;
  limits.num_local_experts = shape.num_local_experts();
  limits.row_bytes = shape.row_bytes;
  limits.max_flat_rows = static_cast<int64_t>(shape.num_ranks) * shape.max_tokens;
  limits.max_expert_rows = limits.max_flat_rows * shape.max_top_k;
  limits.timeout_ms = config.timeout_ms;
  limits.lanes = num_lanes(config, hepModeThroughput);
  limits.low_latency_lanes = num_lanes(config, hepModeLowLatency);
  limits.num_domains = parts_->topology().num_domains();
  limits.domain_size = parts_->topology().domain_size;
  if (limits.low_latency_lanes > 0) limits.low_latency_tokens = config.low_latency_tokens;
  if (config.backend == hepBackendCuda) tell_blocks(*parts_, &limits);
  return limits;
}

Status hepComm::async_error() const {
  HEP_TRY(check());
  const Backend::BadIndex bad = parts_->backend->bad_index();
  if (bad.found) return bad_index_status(*parts_, bad);
  const Backend::Overflow overflow = parts_->backend->overflow();
  if (overflow.found) return overflow_status(*parts_, overflow);
  return Status();
}

void hepComm::fail(const Status& status) {
  parts_->health->fail(status.result(), rank(), status.message());
}

void* hepComm::heap_address() const {
  const Lane& lane = parts_->lanes.front();
  return at<char>(parts_->window->address(rank()), lane.offset + lane.window_layout.heap);
}

Status hepComm::allocate(size_t bytes, void** pointer) {
  uint64_t offset;
  if (!parts_->heap->allocate(bytes, &offset))
    return error(hepErrorOutOfMemory,
                 "hepMemAlloc of %zu bytes: the largest free block of the heap has %" PRIu64
                 " bytes (config heap_bytes is %" PRId64 ")",
                 bytes, parts_->heap->largest_free_block(), config().heap_bytes);
  *pointer = static_cast<char*>(heap_address()) + offset;
  return Status();
}

Status hepComm::free(void* pointer) {
  const uintptr_t base = reinterpret_cast<uintptr_t>(heap_address());
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  if (address < base || !parts_->heap->free(address - base))
    return error(hepErrorInvalidArgument, "pointer %p is not from hepMemAlloc of this communicator",
                 pointer);
  return Status();
}

Status hepComm::register_memory(void* pointer, size_t bytes) {
  return hep::register_memory(*parts_, pointer, bytes);
}

Status hepComm::deregister_memory(void* pointer) {
  return hep::deregister_memory(*parts_, pointer);
}

Status hepComm::find_lane(int32_t mode, int32_t number, int* index) const {
  if (mode != hepModeThroughput && mode != hepModeLowLatency)
    return error(hepErrorInvalidArgument, "mode is %d, must be a hepMode_t", mode);
  const int lanes = num_lanes(config(), mode);
  if (lanes == 0)
    return error(hepErrorInvalidArgument,
                 "mode is hepModeLowLatency, but the config's low_latency_tokens is 0");
  if (number < 0 || number >= lanes)
    return error(hepErrorInvalidArgument, "lane is %d, must be 0 to %d: %s", number, lanes - 1,
                 mode == hepModeLowLatency ? "that many have routings of hepModeLowLatency"
                                           : "below the config's lanes");
  *index = number + (mode == hepModeLowLatency ? num_lanes(config(), hepModeThroughput) : 0);
  return Status();
}

Status hepComm::create_routing(int lane, const RoutingRequest& request,
                               std::unique_ptr<BackendRouting>* routing) {
  return parts_->backend->create_routing(lane, request, routing);
}

void hepComm::remove_routing(int lane, const hepRouting* routing) {
  if (open_[lane] == routing) close(lane);
  --num_routings_;
}

Status hepComm::check_without_routings() const {
  const int alive = num_routings_;
  if (alive == 0) return Status();
  return error(hepErrorInvalidUsage, "%d routings of this communicator are alive", alive);
}
