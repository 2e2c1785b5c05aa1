// SPDX-License-Identifier: Apache-2.0
#include "routing.h"

#include <cinttypes>

#include "arguments.h"
#include "config.h"

namespace hep {
namespace {

Status check_usable(const hepRouting& routing, const char* call) {
  HEP_TRY(routing.comm->check());
  if (!routing.updated)
    return error(hepErrorInvalidUsage, "%s before the first hepRoutingUpdate of this routing",
                 call);
  return Status();
}

// An operation that failed on the way, and not because of its arguments, has failed the communicator.
Status outcome(hepRouting& routing, const Status& status) {
  if (status.ok()) return status;
  HEP_TRY(routing.comm->check());
  return status;
}

}  // namespace

Status check_routing(hepRouting_t routing) {
  if (routing == nullptr) return error(hepErrorInvalidArgument, "routing is NULL");
  if (!is_live_handle(HandleKind::kRouting, routing))
    return error(hepErrorInvalidArgument, "routing %p is not a routing, or has been destroyed",
                 static_cast<void*>(routing));
  return Status();
}

Status create_routing(hepComm_t comm, const hepRoutingConfig_t* theirs,
                      std::unique_ptr<hepRouting>* out) {
  HEP_TRY(comm->check());
  hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
  if (theirs != nullptr)
    HEP_TRY(read_struct(theirs, &config, HEP_ROUTING_CONFIG_MAGIC, "hepRoutingConfig_t"));
  switch (config.alignment) {
    case 0: config.alignment = 1; break;
    case 1:
    case 8:
    case 16:
    case 32:
    case 64:
    case 128: break;
    default:
      return error(hepErrorInvalidArgument, "alignment is %d, must be 1, 8, 16, 32, 64 or 128",
                   config.alignment);
  }
  if (config.mode != hepModeThroughput && config.mode != hepModeLowLatency)
    return error(hepErrorInvalidArgument, "mode is %d, must be a hepMode_t", config.mode);
  if (config.mode == hepModeLowLatency)
    return error(hepErrorUnsupported, "mode hepModeLowLatency is not served yet");
  if (config.lane < 0 || config.lane >= comm->config.lanes)
    return error(hepErrorInvalidArgument, "lane is %d, must be below the config's lanes, %d",
                 config.lane, comm->config.lanes);

  auto routing = std::make_unique<hepRouting>(comm);
  HEP_TRY(comm->backend->create_routing(config.alignment, &routing->backend));
  *out = std::move(routing);
  return Status();
}

Status update_routing(hepRouting_t routing, const void* indices, int64_t num_tokens, int top_k,
                      hepIndexType_t index_type, hepStream_t stream) {
  const hepConfig_t& config = routing->comm->config;
  HEP_TRY(routing->comm->check());
  HEP_TRY(check_update(config, indices, num_tokens, top_k, index_type));
  HEP_TRY(outcome(*routing, routing->backend->update(indices, static_cast<int>(num_tokens), top_k,
                                                     index_type, stream)));
  routing->updated = true;
  routing->has_weights = false;
  routing->num_tokens = static_cast<int>(num_tokens);
  routing->top_k = top_k;
  return Status();
}

Status dispatch(hepRouting_t routing, const hepDispatchArgs_t* theirs, hepStream_t stream) {
  HEP_TRY(check_usable(*routing, "hepDispatch"));
  hepDispatchArgs_t args = HEP_DISPATCH_ARGS_INITIALIZER;
  HEP_TRY(read_struct(theirs, &args, HEP_DISPATCH_ARGS_MAGIC, "hepDispatchArgs_t"));
  HEP_TRY(resolve_dispatch(*routing, &args));
  HEP_TRY(outcome(*routing, routing->backend->dispatch(args, stream)));
  // A rank without tokens has no weights to give, and needs none.
  if (args.weights != nullptr || routing->num_tokens == 0) routing->has_weights = true;
  return Status();
}

Status combine(hepRouting_t routing, const hepCombineArgs_t* theirs, hepStream_t stream) {
  HEP_TRY(check_usable(*routing, "hepCombine"));
  hepCombineArgs_t args = HEP_COMBINE_ARGS_INITIALIZER;
  HEP_TRY(read_struct(theirs, &args, HEP_COMBINE_ARGS_MAGIC, "hepCombineArgs_t"));
  HEP_TRY(resolve_combine(*routing, &args));
  return outcome(*routing, routing->backend->combine(args, stream));
}

Status query_routing(hepRouting_t routing, hepRoutingCounts_t* theirs, hepStream_t stream) {
  HEP_TRY(check_usable(*routing, "hepRoutingQuery"));
  hepRoutingCounts_t counts = HEP_ROUTING_COUNTS_INITIALIZER;
  HEP_TRY(read_struct(theirs, &counts, HEP_ROUTING_COUNTS_MAGIC, "hepRoutingCounts_t"));
  HEP_TRY(routing->backend->query(&counts, stream));
  HEP_TRY(routing->comm->check());
  write_struct(&counts, sizeof counts, theirs);
  return Status();
}

Status view_routing(hepRouting_t routing, hepRoutingView_t* theirs) {
  HEP_TRY(check_output_struct(theirs, HEP_ROUTING_VIEW_MAGIC, "hepRoutingView_t"));
  const hepComm& comm = *routing->comm;
  const RoutingLayout layout = RoutingLayout::make(make_shape(comm.config, comm.num_ranks));
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

hepRouting::hepRouting(hepComm* owner) : comm(owner) { ++comm->live_routings; }

hepRouting::~hepRouting() { --comm->live_routings; }
