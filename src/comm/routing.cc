// SPDX-License-Identifier: Apache-2.0
#include "comm/routing.h"

#include <cinttypes>
#include <optional>
#include <utility>

#include "config/abi.h"
#include "protocol/at.h"
#include "protocol/failure.h"
#include "protocol/routing_layout.h"
#include "protocol/shape.h"

namespace hep {
namespace {

const char* receive_name(hepOperation_t operation) {
  return operation == hepOperationDispatch ? "hepDispatchReceive" : "hepCombineReceive";
}

Status resolve_alignment(int32_t* alignment) {
  if (*alignment == 0) *alignment = 1;
  if (*alignment >= 1 && *alignment <= kMaxAlignment) return Status();
  return error(hepErrorInvalidArgument, "alignment is %d, must be 1 to %d", *alignment,
               kMaxAlignment);
}

// Puts the communicator's value in place of zero.
Status resolve_limit(const char* name, int32_t most, int32_t* limit) {
  if (*limit == 0) *limit = most;
  if (*limit >= 1 && *limit <= most) return Status();
  return error(hepErrorInvalidArgument,
               "%s of hepRoutingConfig_t is %d, must be 1 to the communicator's, %d", name, *limit,
               most);
}

// Reads and checks a caller's config, and finds the lane that it names.
Status read_config(const hepComm& comm, const hepRoutingConfig_t* theirs,
                   hepRoutingConfig_t* config, int* lane) {
  if (theirs != nullptr)
    HEP_TRY(read_struct(theirs, config, HEP_ROUTING_CONFIG_MAGIC, "hepRoutingConfig_t"));
  HEP_TRY(resolve_alignment(&config->alignment));
  HEP_TRY(comm.find_lane(config->mode, config->lane, lane));
  const Shape& shape = comm.lane(*lane).shape;
  HEP_TRY(resolve_limit("max_tokens", shape.max_tokens, &config->max_tokens));
  return resolve_limit("max_top_k", shape.max_top_k, &config->max_top_k);
}

RoutingRequest make_request(const Lane& lane, const hepRoutingConfig_t& config) {
  const RoutingLayout layout = RoutingLayout::make(lane.shape, config.max_tokens, config.max_top_k);
  return {config.alignment, layout,
          NetworkRoutingLayout::make(lane.shape, lane.network_layout, layout.total), nullptr};
}

// Claims the memory that the config brings, if it brings any.
Status claim_memory(const hepRoutingConfig_t& config, uint64_t needed, RoutingMemory* memory) {
  if (config.memory != nullptr) return memory->claim(config.memory, config.memory_bytes, needed);
  if (config.memory_bytes == 0) return Status();
  return error(hepErrorInvalidArgument,
               "memory of hepRoutingConfig_t is NULL, but memory_bytes is %" PRIu64,
               config.memory_bytes);
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

Status destroy_routing(hepRouting_t routing) {
  HEP_TRY(routing->check_may_end());
  delete routing;
  return Status();
}

}  // namespace hep

using namespace hep;

Status hepRouting::create(hepComm& comm, const hepRoutingConfig_t* theirs,
                          std::unique_ptr<hepRouting>* out) {
  HEP_TRY(comm.check());
  hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
  int lane;
  HEP_TRY(read_config(comm, theirs, &config, &lane));
  RoutingRequest request = make_request(comm.lane(lane), config);
  auto routing = std::make_unique<hepRouting>(comm, lane, request.layout, nullptr);
  HEP_TRY(claim_memory(config, request.bytes(), &routing->memory_));
  request.memory = routing->memory_.get();
  HEP_TRY(comm.create_routing(lane, request, &routing->backend_));
  *out = std::move(routing);
  return Status();
}

Status hepRouting::memory_bytes(const hepComm& comm, const hepRoutingConfig_t* theirs,
                                uint64_t* bytes) {
  hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
  int lane;
  HEP_TRY(read_config(comm, theirs, &config, &lane));
  *bytes = make_request(comm.lane(lane), config).bytes();
  return Status();
}

hepRouting::hepRouting(hepComm& comm, int lane, const RoutingLayout& layout,
                       std::unique_ptr<BackendRouting> backend)
    : comm_(comm), lane_(lane), layout_(layout), backend_(std::move(backend)) {
  comm_.add_routing();
}

hepRouting::~hepRouting() {
  backend_.reset();  // before the communicator may go
  comm_.remove_routing(lane_, this);
}

Status hepRouting::update(const hepUpdate_t* theirs, hepStream_t stream) {
  HEP_TRY(check_ready("hepRoutingUpdate", Step::kWhole));
  TopK choice;
  HEP_TRY(read_update(theirs, &choice));
  HEP_TRY(outcome(backend_->update(choice, stream)));
  note_update(choice.batch);
  return Status();
}

Status hepRouting::dispatch(const hepDispatchArgs_t* theirs, Step step, hepStream_t stream) {
  const char* call = step == Step::kSend ? "hepDispatchSend" : "hepDispatch";
  HEP_TRY(check_ready(call, step));
  DispatchRequest request{HEP_DISPATCH_ARGS_INITIALIZER, std::nullopt};
  HEP_TRY(read_dispatch(theirs, &request));
  if (!request.update) HEP_TRY(check_updated(call));
  const Batch batch = request.update ? request.update->batch : batch_;
  HEP_TRY(resolve_dispatch(state(), batch.num_tokens, &request.args));
  HEP_TRY(outcome(backend_->dispatch(request, batch, step, stream)));

  if (request.update) note_update(batch);
  // A rank without tokens has no weights to give, and needs none.
  if (request.args.weights != nullptr || batch.num_tokens == 0) has_weights_ = true;
  if (step == Step::kWhole) return Status();
  dispatch_request_ = request;
  open(hepOperationDispatch);
  return Status();
}

Status hepRouting::combine(const hepCombineArgs_t* theirs, Step step, hepStream_t stream) {
  const char* call = step == Step::kSend ? "hepCombineSend" : "hepCombine";
  HEP_TRY(check_ready(call, step));
  HEP_TRY(check_updated(call));
  hepCombineArgs_t args = HEP_COMBINE_ARGS_INITIALIZER;
  HEP_TRY(read_struct(theirs, &args, HEP_COMBINE_ARGS_MAGIC, "hepCombineArgs_t"));
  HEP_TRY(resolve_combine(state(), &args));
  HEP_TRY(outcome(backend_->combine(args, batch_, step, stream)));
  if (step == Step::kWhole) return Status();
  combine_args_ = args;
  open(hepOperationCombine);
  return Status();
}

Status hepRouting::receive(hepOperation_t operation, hepStream_t stream) {
  const char* call = receive_name(operation);
  HEP_TRY(comm_.check());
  HEP_TRY(check_has_halves(call));
  if (open_ == hepOperationNone)
    return error(hepErrorInvalidUsage, "%s without the first half of a %s of this routing", call,
                 operation_name(operation));
  if (open_ != operation) return check_not_open(call);
  HEP_TRY(outcome(operation == hepOperationDispatch
                      ? backend_->dispatch(dispatch_request_, batch_, Step::kReceive, stream)
                      : backend_->combine(combine_args_, batch_, Step::kReceive, stream)));
  close();
  return Status();
}

Status hepRouting::query(hepRoutingCounts_t* theirs, hepStream_t stream) {
  HEP_TRY(comm_.check());
  HEP_TRY(check_updated("hepRoutingQuery"));
  if (open_ == hepOperationDispatch && dispatch_request_.update)
    HEP_TRY(check_not_open("hepRoutingQuery"));
  hepRoutingCounts_t counts = HEP_ROUTING_COUNTS_INITIALIZER;
  HEP_TRY(read_struct(theirs, &counts, HEP_ROUTING_COUNTS_MAGIC, "hepRoutingCounts_t"));
  HEP_TRY(backend_->query(&counts, stream));
  HEP_TRY(comm_.check());
  write_struct(&counts, sizeof counts, theirs);
  return Status();
}

Status hepRouting::view(hepRoutingView_t* theirs) const {
  HEP_TRY(check_output_struct(theirs, HEP_ROUTING_VIEW_MAGIC, "hepRoutingView_t"));
  const void* memory = backend_->memory();
  const RoutingTotals* totals = at<RoutingTotals>(memory, layout_.totals);

  hepRoutingView_t view = HEP_ROUTING_VIEW_INITIALIZER;
  view.tokens_per_expert = at<int32_t>(memory, layout_.tokens_per_expert);
  view.expert_offsets = at<int32_t>(memory, layout_.expert_offsets);
  view.num_flat_rows = &totals->num_flat_rows;
  view.num_expert_rows = &totals->num_expert_rows;
  view.row_counters = &totals->row_counters;
  write_struct(&view, sizeof view, theirs);
  return Status();
}

Status hepRouting::check_may_end() const {
  if (open_ == hepOperationNone || !comm_.check().ok()) return Status();
  return check_not_open("hepRoutingDestroy");
}

RoutingState hepRouting::state() const {
  return {comm_.config(), lane(), layout_, batch_.num_tokens, has_weights_};
}

// No operation of a lane may begin between the halves of another.
Status hepRouting::check_not_open(const char* call) const {
  const hepRouting* routing = comm_.open_routing(lane_);
  if (routing == nullptr) return Status();
  return error(hepErrorInvalidUsage, "%s between the halves of a %s of %s on %s; %s comes first",
               call, operation_name(routing->open_),
               routing == this ? "this routing" : "another routing",
               lane_name(lane().mode, lane().number).c_str(), receive_name(routing->open_));
}

Status hepRouting::check_updated(const char* call) const {
  if (updated_) return Status();
  return error(hepErrorInvalidUsage, "%s before the first hepRoutingUpdate of this routing", call);
}

Status hepRouting::check_has_halves(const char* call) const {
  if (lane().mode == hepModeLowLatency) return Status();
  return error(hepErrorUnsupported, "%s needs a routing of hepModeLowLatency", call);
}

// Checks that an operation may begin.
Status hepRouting::check_ready(const char* call, Step step) const {
  HEP_TRY(comm_.check());
  if (step == Step::kSend) HEP_TRY(check_has_halves(call));
  return check_not_open(call);
}

Status hepRouting::read_update(const hepUpdate_t* theirs, TopK* choice) const {
  hepUpdate_t update = HEP_UPDATE_INITIALIZER;
  HEP_TRY(read_struct(theirs, &update, HEP_UPDATE_MAGIC, "hepUpdate_t"));
  if (update.num_tokens == 0) update.indices = nullptr;
  HEP_TRY(check_update(state(), update));
  *choice = {
      update.indices, {static_cast<int>(update.num_tokens), update.top_k}, update.index_type};
  return Status();
}

// Reads the arguments, and reads and checks the update among them. The pointer to the update goes.
Status hepRouting::read_dispatch(const hepDispatchArgs_t* theirs, DispatchRequest* request) const {
  HEP_TRY(read_struct(theirs, &request->args, HEP_DISPATCH_ARGS_MAGIC, "hepDispatchArgs_t"));
  const hepUpdate_t* update = std::exchange(request->args.update, nullptr);
  if (update == nullptr) return Status();
  return read_update(update, &request->update.emplace());
}

// An operation that fails on the way, and not because of its arguments, fails the communicator.
Status hepRouting::outcome(const Status& status) {
  if (status.ok()) return status;
  if (backend_->has_begun()) comm_.fail(status);
  HEP_TRY(comm_.check());
  return status;
}

void hepRouting::note_update(const Batch& batch) {
  updated_ = true;
  has_weights_ = false;
  batch_ = batch;
}

void hepRouting::open(hepOperation_t operation) {
  open_ = operation;
  comm_.open(lane_, this);
}

void hepRouting::close() {
  open_ = hepOperationNone;
  comm_.close(lane_);
}
