// SPDX-License-Identifier: Apache-2.0
#include "routing.h"

#include <cinttypes>

#include "config.h"

namespace hep {
namespace {

// How 16-byte copies want their rows.
constexpr uintptr_t kRowAlignment = 16;

bool is_aligned(const void* pointer, uintptr_t alignment) {
  return reinterpret_cast<uintptr_t>(pointer) % alignment == 0;
}

// A matrix that may be absent only if it has no rows.
Status check_rows(const void* pointer, int64_t num_rows, const char* name, const char* count_name) {
  if (pointer == nullptr && num_rows > 0)
    return error(hepErrorInvalidArgument, "%s is NULL, but %s is %" PRId64, name, count_name,
                 num_rows);
  if (!is_aligned(pointer, kRowAlignment))
    return error(hepErrorInvalidArgument, "%s is %p, must be aligned to %d bytes", name, pointer,
                 static_cast<int>(kRowAlignment));
  return Status();
}

Status check_capacity(const void* rows, int64_t capacity, const char* name) {
  if (capacity < 0)
    return error(hepErrorInvalidArgument, "capacity is %" PRId64 ", must not be negative",
                 capacity);
  if (capacity == 0 && rows != nullptr)
    return error(hepErrorInvalidArgument,
                 "capacity is 0, but %s is not NULL: a rank that takes no rows gives NULL", name);
  return check_rows(rows, capacity, name, "capacity");
}

Status check_array(const void* pointer, const char* name) {
  if (!is_aligned(pointer, sizeof(int32_t)))
    return error(hepErrorInvalidArgument, "%s is %p, must be aligned to 4 bytes", name, pointer);
  return Status();
}

Status check_layout(int32_t layout) {
  if (layout == hepLayoutExpertPadded)
    return error(hepErrorUnsupported, "layout hepLayoutExpertPadded is not served yet");
  if (layout != hepLayoutFlat && layout != hepLayoutExpertMajor)
    return error(hepErrorInvalidArgument, "layout is %d, must be a hepLayout_t", layout);
  return Status();
}

Status check_type(int32_t type, int32_t communicators, const char* name) {
  if (type == hepTypeDefault || type == communicators) return Status();
  if (type < hepTypeDefault || type > hepTypeBytes)
    return error(hepErrorInvalidArgument, "%s is %d, must be a hepDataType_t", name, type);
  return error(hepErrorUnsupported,
               "%s is %d: types other than the communicator's (%d) are not served yet", name, type,
               communicators);
}

Status refuse(bool given, const char* what) {
  if (given) return error(hepErrorUnsupported, "%s is given, but not served yet", what);
  return Status();
}

Status check_usable(const hepRouting& routing, const char* call) {
  HEP_TRY(routing.comm->check());
  if (!routing.updated)
    return error(hepErrorInvalidUsage, "%s before the first hepRoutingUpdate of this routing",
                 call);
  return Status();
}

Status check_dispatch(const hepRouting& routing, const hepDispatchArgs_t& args) {
  HEP_TRY(check_layout(args.layout));
  HEP_TRY(check_type(args.type, routing.comm->config.type, "type"));
  if (args.overflow != hepOverflowDrop && args.overflow != hepOverflowError)
    return error(hepErrorInvalidArgument, "overflow is %d, must be a hepOverflow_t", args.overflow);
  HEP_TRY(refuse(args.overflow == hepOverflowError, "overflow hepOverflowError"));
  HEP_TRY(refuse(args.reserved != 0, "reserved"));
  HEP_TRY(refuse(args.scales != nullptr, "scales"));
  HEP_TRY(refuse(args.row_scales != nullptr, "row_scales"));
  HEP_TRY(refuse(args.row_scales_stride != 0, "row_scales_stride"));

  HEP_TRY(check_rows(args.x, routing.num_tokens, "x", "num_tokens"));
  HEP_TRY(check_capacity(args.rows, args.capacity, "rows"));
  HEP_TRY(check_array(args.weights, "weights"));
  HEP_TRY(check_array(args.row_weights, "row_weights"));
  HEP_TRY(check_array(args.row_experts, "row_experts"));
  HEP_TRY(check_array(args.row_sources, "row_sources"));
  HEP_TRY(check_array(args.row_tokens, "row_tokens"));
  HEP_TRY(check_array(args.gather, "gather"));

  if (args.layout != hepLayoutFlat && (args.row_experts != nullptr || args.gather != nullptr))
    return error(hepErrorInvalidArgument, "%s is given, but belongs to layout hepLayoutFlat only",
                 args.row_experts != nullptr ? "row_experts" : "gather");
  if (args.gather_capacity < 0)
    return error(hepErrorInvalidArgument, "gather_capacity is %" PRId64 ", must not be negative",
                 args.gather_capacity);
  if ((args.gather != nullptr) != (args.gather_capacity > 0))
    return error(hepErrorInvalidArgument,
                 "gather is %p and gather_capacity %" PRId64 ": give both or none",
                 static_cast<void*>(args.gather), args.gather_capacity);
  return Status();
}

Status check_combine(const hepRouting& routing, const hepCombineArgs_t& args) {
  HEP_TRY(check_layout(args.layout));
  HEP_TRY(check_type(args.type, routing.comm->config.type, "type"));
  HEP_TRY(check_type(args.partial_type, hepTypeBfloat16, "partial_type"));
  HEP_TRY(refuse(args.row_gradients != nullptr, "row_gradients"));
  HEP_TRY(refuse(args.gradients != nullptr, "gradients"));

  HEP_TRY(check_capacity(args.y, args.capacity, "y"));
  HEP_TRY(check_rows(args.out, routing.num_tokens, "out", "num_tokens"));
  HEP_TRY(check_array(args.row_weights, "row_weights"));
  switch (args.weight_mode) {
    case hepWeightsNone: break;
    case hepWeightsDispatched:
      if (!routing.has_weights)
        return error(hepErrorInvalidUsage,
                     "weight mode hepWeightsDispatched, but no dispatch with weights followed the "
                     "routing's latest update");
      break;
    case hepWeightsRow:
      if (args.row_weights == nullptr && args.capacity > 0)
        return error(hepErrorInvalidArgument, "weight mode hepWeightsRow, but row_weights is NULL");
      return Status();
    default:
      return error(hepErrorInvalidArgument, "weight_mode is %d, must be a hepWeightMode_t",
                   args.weight_mode);
  }
  if (args.row_weights != nullptr)
    return error(hepErrorInvalidArgument,
                 "row_weights is given, but belongs to weight mode hepWeightsRow only");
  return Status();
}

}  // namespace

Status check_routing(hepRouting_t routing) {
  if (routing == nullptr) return error(hepErrorInvalidArgument, "routing is NULL");
  if (routing->magic != hepRouting::kMagic)
    return error(hepErrorInvalidArgument, "routing %p is not a routing",
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
  HEP_TRY(refuse(config.mode == hepModeLowLatency, "mode hepModeLowLatency"));
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
  if (num_tokens < 0 || num_tokens > config.max_tokens)
    return error(hepErrorInvalidArgument,
                 "num_tokens is %" PRId64 ", must be 0 to the config's max_tokens, %d", num_tokens,
                 config.max_tokens);
  if (top_k < 1 || top_k > config.max_top_k)
    return error(hepErrorInvalidArgument, "top_k is %d, must be 1 to the config's max_top_k, %d",
                 top_k, config.max_top_k);
  if (index_type != hepIndexInt32 && index_type != hepIndexInt64)
    return error(hepErrorInvalidArgument, "index_type is %d, must be a hepIndexType_t", index_type);
  if (indices == nullptr && num_tokens > 0)
    return error(hepErrorInvalidArgument, "indices is NULL, but num_tokens is %" PRId64,
                 num_tokens);
  const int index_bytes = index_type == hepIndexInt64 ? 8 : 4;
  if (!is_aligned(indices, index_bytes))
    return error(hepErrorInvalidArgument, "indices is %p, must be aligned to %d bytes", indices,
                 index_bytes);

  HEP_TRY(
      routing->backend->update(indices, static_cast<int>(num_tokens), top_k, index_type, stream));
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
  HEP_TRY(check_dispatch(*routing, args));
  HEP_TRY(routing->backend->dispatch(args, stream));
  // A rank without tokens has no weights to give, and needs none.
  if (args.weights != nullptr || routing->num_tokens == 0) routing->has_weights = true;
  return Status();
}

Status combine(hepRouting_t routing, const hepCombineArgs_t* theirs, hepStream_t stream) {
  HEP_TRY(check_usable(*routing, "hepCombine"));
  hepCombineArgs_t args = HEP_COMBINE_ARGS_INITIALIZER;
  HEP_TRY(read_struct(theirs, &args, HEP_COMBINE_ARGS_MAGIC, "hepCombineArgs_t"));
  HEP_TRY(check_combine(*routing, args));
  return routing->backend->combine(args, stream);
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

hepRouting::~hepRouting() {
  magic = 0;
  --comm->live_routings;
}
