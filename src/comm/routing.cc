// SPDX-License-Identifier: Apache-2.0
#include "comm/routing.h"

#include <cinttypes>
#include <optional>
#include <utility>

#include "config/abi.h"
#include "config/arguments.h"
#include "protocol/at.h"
#include "protocol/failure.h"
#include "protocol/routing_layout.h"

namespace hep {
namespace {

const char* receive_name(hepOperation_t operation) {
  return operation == hepOperationDispatch ? "hepDispatchReceive" : "hepCombineReceive";
}

// Another operation may not come between the halves of one.
Status check_not_split(const hepRouting& routing, const char* call) {
  const hepRouting* open = routing.comm->split_routing(routing.warp_lane);
  if (open == nullptr) return Status();
  const Lane& lane = routing.lane();
  return error(hepErrorInvalidUsage, "%s between the halves of a %s of %s on %s; %s comes first",
               call, operation_name(open->split),
               open == &routing ? "this routing" : "another routing",
               lane_name(lane.mode, lane.number).c_str(), receive_name(open->split));
}

Status check_updated(const hepRouting& routing, const char* call) {
  if (routing.updated) return Status();
  return error(hepErrorInvalidUsage, "%s before the first hepRoutingUpdate of this routing", call);
}

Status check_has_halves(const hepRouting& routing, const char* call) {
  if (routing.lane().mode == hepModeLowLatency) return Status();
  return error(hepErrorUnsupported, "%s needs a routing of hepModeLowLatency", call);
}

// That an operation may begin.
Status check_ready(const hepRouting& routing, const char* call, Step step) {
  HEP_TRY(routing.comm->check());
  if (step == Step::kSend) HEP_TRY(check_has_halves(routing, call));
  return check_not_split(routing, call);
}

void begin_split(hepRouting& routing, hepOperation_t operation) {
  routing.split = operation;
  routing.comm->begin_split(routing.warp_lane, &routing);
}

void end_split(hepRouting& routing) {
  routing.split = hepOperationNone;
  routing.comm->end_split(routing.warp_lane);
}

void note_update(hepRouting& routing, const Batch& batch) {
  routing.updated = true;
  routing.has_weights = false;
  routing.batch = batch;
}

RoutingState state_of(const hepRouting& routing) {
  return {routing.comm->config, routing.lane(), routing.batch.num_tokens, routing.has_weights};
}

// Reads and checks a caller's update.
Status read_update(const hepRouting& routing, const hepUpdate_t* theirs, TopK* choice) {
  hepUpdate_t update = HEP_UPDATE_INITIALIZER;
  HEP_TRY(read_struct(theirs, &update, HEP_UPDATE_MAGIC, "hepUpdate_t"));
  HEP_TRY(check_update(state_of(routing), update));
  *choice = {
      update.indices, {static_cast<int>(update.num_tokens), update.top_k}, update.index_type};
  return Status();
}

// Reads a caller's arguments, and reads and checks the update among them. The pointer to it goes.
Status read_dispatch(const hepRouting& routing, const hepDispatchArgs_t* theirs,
                     DispatchRequest* request) {
  HEP_TRY(read_struct(theirs, &request->args, HEP_DISPATCH_ARGS_MAGIC, "hepDispatchArgs_t"));
  const hepUpdate_t* update = std::exchange(request->args.update, nullptr);
  if (update == nullptr) return Status();
  return read_update(routing, update, &request->update.emplace());
}

Status check_routing_config(const hepComm& comm, hepRoutingConfig_t* config) {
  switch (config->alignment) {
    case 0: config->alignment = 1; break;
    case 1:
    case 8:
    case 16:
    case 32:
    case 64:
    case 128: break;
    default:
      return error(hepErrorInvalidArgument, "alignment is %d, must be 1, 8, 16, 32, 64 or 128",
                   config->alignment);
  }
  if (config->mode != hepModeThroughput && config->mode != hepModeLowLatency)
    return error(hepErrorInvalidArgument, "mode is %d, must be a hepMode_t", config->mode);
  const int lanes = num_lanes(comm.config, config->mode);
  if (lanes == 0)
    return error(hepErrorInvalidArgument,
                 "mode is hepModeLowLatency, but the config's low_latency_tokens is 0");
  if (config->lane >= 0 && config->lane < lanes) return Status();
  return error(hepErrorInvalidArgument, "lane is %d, must be 0 to %d: %s", config->lane, lanes - 1,
               config->mode == hepModeLowLatency ? "that many have routings of hepModeLowLatency"
                                                 : "below the config's lanes");
}

// An operation that failed on the way, and not because of its arguments, has failed the communicator.
Status outcome(hepRouting& routing, const Status& status) {
  if (status.ok()) return status;
  hepComm& comm = *routing.comm;
  if (routing.backend->has_begun()) comm.health->fail(status.result(), comm.rank, status.message());
  HEP_TRY(comm.check());
  return status;
}

}  // namespace

Status check_routing(hepRouting_t& routing) {
  if (routing == nullptr) return error(hepErrorInvalidArgument, "routing is NULL");
  void* const object = find_object(HandleKind::kRouting, routing);
  if (object == nullptr)
    return error(hepErrorInvalidArgument, "routing %p is not a routing, or has been destroyed",
                 static_cast<void*>(routing));
  routing = static_cast<hepRouting*>(object);
  return Status();
}

Status create_routing(hepComm_t comm, const hepRoutingConfig_t* theirs,
                      std::unique_ptr<hepRouting>* out) {
  HEP_TRY(comm->check());
  hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
  if (theirs != nullptr)
    HEP_TRY(read_struct(theirs, &config, HEP_ROUTING_CONFIG_MAGIC, "hepRoutingConfig_t"));
  HEP_TRY(check_routing_config(*comm, &config));

  const int before = config.mode == hepModeLowLatency ? comm->config.lanes : 0;
  auto routing = std::make_unique<hepRouting>(comm, before + config.lane);
  HEP_TRY(comm->backend->create_routing(routing->warp_lane, config.alignment, &routing->backend));
  *out = std::move(routing);
  return Status();
}

Status destroy_routing(hepRouting_t routing) {
  if (routing->split != hepOperationNone && routing->comm->check().ok())
    HEP_TRY(check_not_split(*routing, "hepRoutingDestroy"));
  delete routing;
  return Status();
}

Status update_routing(hepRouting_t routing, const hepUpdate_t* theirs, hepStream_t stream) {
  HEP_TRY(check_ready(*routing, "hepRoutingUpdate", Step::kWhole));
  TopK choice;
  HEP_TRY(read_update(*routing, theirs, &choice));
  HEP_TRY(outcome(*routing, routing->backend->update(choice, stream)));
  note_update(*routing, choice.batch);
  return Status();
}

Status dispatch(hepRouting_t routing, const hepDispatchArgs_t* theirs, Step step,
                hepStream_t stream) {
  const char* call = step == Step::kSend ? "hepDispatchSend" : "hepDispatch";
  HEP_TRY(check_ready(*routing, call, step));
  DispatchRequest request{HEP_DISPATCH_ARGS_INITIALIZER, std::nullopt};
  HEP_TRY(read_dispatch(*routing, theirs, &request));
  if (!request.update) HEP_TRY(check_updated(*routing, call));
  const Batch batch = request.update ? request.update->batch : routing->batch;
  HEP_TRY(resolve_dispatch(state_of(*routing), batch.num_tokens, &request.args));
  HEP_TRY(outcome(*routing, routing->backend->dispatch(request, batch, step, stream)));

  if (request.update) note_update(*routing, batch);
  // A rank without tokens has no weights to give, and needs none.
  if (request.args.weights != nullptr || batch.num_tokens == 0) routing->has_weights = true;
  if (step == Step::kWhole) return Status();
  routing->dispatch_request = request;
  begin_split(*routing, hepOperationDispatch);
  return Status();
}

Status combine(hepRouting_t routing, const hepCombineArgs_t* theirs, Step step,
               hepStream_t stream) {
  const char* call = step == Step::kSend ? "hepCombineSend" : "hepCombine";
  HEP_TRY(check_ready(*routing, call, step));
  HEP_TRY(check_updated(*routing, call));
  hepCombineArgs_t args = HEP_COMBINE_ARGS_INITIALIZER;
  HEP_TRY(read_struct(theirs, &args, HEP_COMBINE_ARGS_MAGIC, "hepCombineArgs_t"));
  HEP_TRY(resolve_combine(state_of(*routing), &args));
  HEP_TRY(outcome(*routing, routing->backend->combine(args, routing->batch, step, stream)));
  if (step == Step::kWhole) return Status();
  routing->combine_args = args;
  begin_split(*routing, hepOperationCombine);
  return Status();
}

Status receive(hepRouting_t routing, hepOperation_t operation, hepStream_t stream) {
  const char* call = receive_name(operation);
  HEP_TRY(routing->comm->check());
  HEP_TRY(check_has_halves(*routing, call));
  if (routing->split == hepOperationNone)
    return error(hepErrorInvalidUsage, "%s without the first half of a %s of this routing", call,
                 operation_name(operation));
  if (routing->split != operation) return check_not_split(*routing, call);
  HEP_TRY(outcome(*routing, operation == hepOperationDispatch
                                ? routing->backend->dispatch(routing->dispatch_request,
                                                             routing->batch, Step::kReceive, stream)
                                : routing->backend->combine(routing->combine_args, routing->batch,
                                                            Step::kReceive, stream)));
  end_split(*routing);
  return Status();
}

Status query_routing(hepRouting_t routing, hepRoutingCounts_t* theirs, hepStream_t stream) {
  HEP_TRY(routing->comm->check());
  HEP_TRY(check_updated(*routing, "hepRoutingQuery"));
  if (routing->split == hepOperationDispatch && routing->dispatch_request.update)
    HEP_TRY(check_not_split(*routing, "hepRoutingQuery"));
  hepRoutingCounts_t counts = HEP_ROUTING_COUNTS_INITIALIZER;
  HEP_TRY(read_struct(theirs, &counts, HEP_ROUTING_COUNTS_MAGIC, "hepRoutingCounts_t"));
  HEP_TRY(routing->backend->query(&counts, stream));
  HEP_TRY(routing->comm->check());
  write_struct(&counts, sizeof counts, theirs);
  return Status();
}

Status view_routing(hepRouting_t routing, hepRoutingView_t* theirs) {
  HEP_TRY(check_output_struct(theirs, HEP_ROUTING_VIEW_MAGIC, "hepRoutingView_t"));
  const RoutingLayout& layout = routing->lane().routing_layout;
  const void* memory = routing->backend->memory();
  const RoutingTotals* totals = at<RoutingTotals>(memory, layout.totals);

  hepRoutingView_t view = HEP_ROUTING_VIEW_INITIALIZER;
  view.tokens_per_expert = at<int32_t>(memory, layout.tokens_per_expert);
  view.expert_offsets = at<int32_t>(memory, layout.expert_offsets);
  view.num_flat_rows = &totals->num_flat_rows;
  view.num_expert_rows = &totals->num_expert_rows;
  view.row_counters = &totals->row_counters;
  write_struct(&view, sizeof view, theirs);
  return Status();
}

}  // namespace hep

hepRouting::hepRouting(hepComm* owner, int index) : comm(owner), warp_lane(index) {
  comm->add_routing();
}

hepRouting::~hepRouting() {
  backend.reset();  // before the communicator may go
  comm->remove_routing(warp_lane, this);
}
