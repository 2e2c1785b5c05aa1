// SPDX-License-Identifier: Apache-2.0
#include "config/arguments.h"

#include <cinttypes>

#include "protocol/call_summary.h"
#include "protocol/data_type.h"
#include "protocol/quantization.h"

namespace hep {
namespace {

// How 16-byte copies want their rows, and the columns of scales.
constexpr int kRowAlignment = 16;

Status check_alignment(const void* pointer, int alignment, const char* name) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignment == 0) return Status();
  return error(hepErrorInvalidArgument, "%s is %p, must be aligned to %d bytes", name, pointer,
               alignment);
}

Status check_array(const void* pointer, const char* name) {
  return check_alignment(pointer, sizeof(int32_t), name);
}

// A matrix that may be absent only if it has no rows.
Status check_rows(const void* pointer, int64_t num_rows, const char* name, const char* count_name) {
  if (pointer == nullptr && num_rows > 0)
    return error(hepErrorInvalidArgument, "%s is NULL, but %s is %" PRId64, name, count_name,
                 num_rows);
  return check_alignment(pointer, kRowAlignment, name);
}

Status check_capacity(const void* rows, int64_t capacity, const char* name) {
  if (capacity < 0)
    return error(hepErrorInvalidArgument, "capacity is %" PRId64 ", must not be negative",
                 capacity);
  return check_rows(rows, capacity, name, "capacity");
}

Status check_layout(int32_t layout) {
  if (layout >= hepLayoutFlat && layout <= hepLayoutExpertPadded) return Status();
  return error(hepErrorInvalidArgument, "layout is %d, must be a hepLayout_t", layout);
}

// An output that exists in the expert layouts alone.
Status check_expert_rows(const hepDispatchArgs_t& args) {
  if (args.expert_rows == nullptr || args.layout != hepLayoutFlat)
    return check_array(args.expert_rows, "expert_rows");
  return error(hepErrorInvalidArgument,
               "expert_rows is given, but belongs to layouts hepLayoutExpertMajor and "
               "hepLayoutExpertPadded only");
}

// An output that exists in one layout alone.
Status check_belongs(const void* pointer, const char* name, int32_t layout, hepLayout_t its_layout,
                     const char* layout_name) {
  if (pointer == nullptr || layout == its_layout) return check_array(pointer, name);
  return error(hepErrorInvalidArgument, "%s is given, but belongs to layout %s only", name,
               layout_name);
}

// Puts the config's in place of zero.
Status resolve_hidden(const hepConfig_t& config, int64_t* hidden) {
  if (*hidden == 0) *hidden = config.hidden;
  if (*hidden >= 1 && *hidden <= kMaxHidden) return Status();
  return error(hepErrorInvalidArgument,
               "hidden is %" PRId64 ", must be 1 to %d, or 0 for the config's, %d", *hidden,
               kMaxHidden, config.hidden);
}

// ------------------------------------------------------------------------------------ dispatch

Status check_dispatch_rows(int32_t row_bytes, const hepDispatchArgs_t& args) {
  HEP_TRY(check_type("type", args.type));
  HEP_TRY(check_row_granularity("type", args.hidden, args.type));
  const int64_t bytes = args.hidden * element_bytes(args.type);
  if (bytes <= row_bytes) return Status();
  return error(hepErrorInvalidArgument,
               "type is %d (%s) and hidden %" PRId64 ", which makes rows of %" PRId64
               " bytes, but the communicator has room for rows of %d",
               args.type, type_name(args.type), args.hidden, bytes, row_bytes);
}

Status check_quantization(const hepConfig_t& config, const hepDispatchArgs_t& args) {
  if (args.quantize < hepQuantizeNone || args.quantize > hepQuantizeUe8m0)
    return error(hepErrorInvalidArgument, "quantize is %d, must be a hepQuantization_t",
                 args.quantize);
  if (args.quantize == hepQuantizeNone) return Status();
  if (args.type != hepTypeFloat8E4M3)
    return error(hepErrorInvalidArgument,
                 "quantize is %d, but type is %d (%s), must be hepTypeFloat8E4M3", args.quantize,
                 args.type, type_name(args.type));
  if (args.scales != nullptr)
    return error(hepErrorInvalidArgument, "scales is given, but quantize %d computes them",
                 args.quantize);
  const int bytes = quantization_scale_bytes(static_cast<int>(args.hidden), args.quantize);
  if (bytes <= config.scale_bytes) return Status();
  return error(hepErrorInvalidArgument,
               "quantize %d makes %d bytes of scales a row of %" PRId64
               " elements, but the config's scale_bytes is %d",
               args.quantize, bytes, args.hidden, config.scale_bytes);
}

Status check_column_major(const hepConfig_t& config, const hepDispatchArgs_t& args) {
  const int64_t bytes = args.scale_element_bytes;
  if (bytes != 1 && bytes != 2 && bytes != 4)
    return error(hepErrorInvalidArgument,
                 "scale_element_bytes is %" PRId64 ", must be 1, 2 or 4 for column-major scales",
                 bytes);
  if (config.scale_bytes % bytes != 0)
    return error(hepErrorInvalidArgument,
                 "scale_element_bytes is %" PRId64 ", must divide the config's scale_bytes, %d",
                 bytes, config.scale_bytes);
  if (args.row_scales_stride < args.capacity)
    return error(hepErrorInvalidArgument,
                 "row_scales_stride is %" PRId64 ", must be at least capacity, %" PRId64,
                 args.row_scales_stride, args.capacity);
  if (args.row_scales_stride % (kRowAlignment / bytes) != 0)
    return error(hepErrorInvalidArgument,
                 "row_scales_stride is %" PRId64 " elements of %" PRId64
                 " bytes, must be a multiple of %d bytes",
                 args.row_scales_stride, bytes, kRowAlignment);
  return check_alignment(args.row_scales, static_cast<int>(bytes), "row_scales");
}

Status check_scales(const RoutingState& routing, const hepDispatchArgs_t& args,
                    int64_t num_tokens) {
  const hepConfig_t& config = routing.config;
  const bool any = args.scales != nullptr || args.row_scales != nullptr;
  if (any && config.scale_bytes == 0)
    return error(hepErrorInvalidArgument, "%s is given, but the config's scale_bytes is 0",
                 args.scales != nullptr ? "scales" : "row_scales");
  if (args.row_scales != nullptr && args.scales == nullptr && args.quantize == hepQuantizeNone &&
      num_tokens > 0)
    return error(hepErrorInvalidArgument,
                 "row_scales is given, but scales is NULL: ranks with tokens give scales all or "
                 "none");
  if (args.row_scales_stride != 0) return check_column_major(config, args);
  if (args.scale_element_bytes != 0)
    return error(hepErrorInvalidArgument,
                 "scale_element_bytes is %" PRId64
                 ", but belongs to column-major scales only, and "
                 "row_scales_stride is 0",
                 args.scale_element_bytes);
  return Status();
}

// Without tokens and without rows, pointers mean nothing.
void ignore_unused(int64_t num_tokens, hepDispatchArgs_t* args) {
  if (num_tokens == 0) {
    args->x = args->scales = nullptr;
    args->weights = args->dense_weights = nullptr;
  }
  if (args->capacity != 0) return;
  args->rows = args->row_scales = nullptr;
  args->row_weights = nullptr;
  args->row_experts = args->row_sources = args->row_tokens = nullptr;
  if (args->gather_capacity == 0) args->gather = nullptr;
}

// Leaves the array in `sparse`, of whichever form it is.
template <typename T>
Status resolve_dense(const char* sparse_name, const char* dense_name, T* dense, T** sparse) {
  HEP_TRY(check_array(*sparse, sparse_name));
  HEP_TRY(check_array(dense, dense_name));
  if (dense == nullptr) return Status();
  if (*sparse != nullptr)
    return error(hepErrorInvalidArgument, "%s and %s are both given: give one", sparse_name,
                 dense_name);
  *sparse = dense;
  return Status();
}

Status check_gather(const hepDispatchArgs_t& args) {
  HEP_TRY(check_belongs(args.gather, "gather", args.layout, hepLayoutFlat, "hepLayoutFlat"));
  if (args.gather_capacity < 0)
    return error(hepErrorInvalidArgument, "gather_capacity is %" PRId64 ", must not be negative",
                 args.gather_capacity);
  if ((args.gather != nullptr) != (args.gather_capacity > 0))
    return error(hepErrorInvalidArgument,
                 "gather is %p and gather_capacity %" PRId64 ": give both or none",
                 static_cast<void*>(args.gather), args.gather_capacity);
  return Status();
}

// ------------------------------------------------------------------------------------- combine

void ignore_unused(int64_t num_tokens, hepCombineArgs_t* args) {
  if (num_tokens == 0) {
    args->out = nullptr;
    args->gradients = args->dense_gradients = nullptr;
  }
  if (args->capacity != 0) return;
  args->y = nullptr;
  args->row_weights = args->row_gradients = nullptr;
}

// That partial sums find room in the slots.
Status check_partial_rows(int32_t slot_bytes, const hepCombineArgs_t& args) {
  const int64_t bytes = args.hidden * element_bytes(args.partial_type);
  if (bytes <= slot_bytes) return Status();
  return error(hepErrorInvalidArgument,
               "hidden is %" PRId64 ", which makes partial sums of %" PRId64
               " bytes in %s, but the communicator has room for partial sums of %d",
               args.hidden, bytes, type_name(args.partial_type), slot_bytes);
}

Status check_combine_types(const hepConfig_t& config, const hepCombineArgs_t& args) {
  HEP_TRY(check_summable("type", args.type));
  HEP_TRY(check_row_granularity("type", args.hidden, args.type));
  HEP_TRY(check_partial_type("partial_type", args.partial_type));
  HEP_TRY(check_row_granularity("partial_type", args.hidden, args.partial_type));
  if (element_bytes(args.partial_type) <= element_bytes(config.partial_type)) return Status();
  return error(hepErrorInvalidArgument,
               "partial_type is %d (%s), but the config's partial_type, %d (%s), makes no room for "
               "it",
               args.partial_type, type_name(args.partial_type), config.partial_type,
               type_name(config.partial_type));
}

Status check_weight_mode(const RoutingState& routing, const hepCombineArgs_t& args) {
  if (args.weight_mode < hepWeightsNone || args.weight_mode > hepWeightsRow)
    return error(hepErrorInvalidArgument, "weight_mode is %d, must be a hepWeightMode_t",
                 args.weight_mode);
  if (args.weight_mode == hepWeightsDispatched && !routing.has_weights)
    return error(hepErrorInvalidUsage,
                 "weight mode hepWeightsDispatched, but no dispatch with weights followed the "
                 "routing's latest update");
  if (args.weight_mode == hepWeightsRow && args.row_weights == nullptr && args.capacity > 0)
    return error(hepErrorInvalidArgument, "weight mode hepWeightsRow, but row_weights is NULL");
  if (args.weight_mode != hepWeightsRow && args.row_weights != nullptr)
    return error(hepErrorInvalidArgument,
                 "row_weights is given, but belongs to weight mode hepWeightsRow only");
  return check_array(args.row_weights, "row_weights");
}

Status check_gradients(const RoutingState& routing, const hepCombineArgs_t& args) {
  HEP_TRY(check_array(args.row_gradients, "row_gradients"));
  if (args.row_gradients != nullptr && args.gradients == nullptr && routing.num_tokens > 0)
    return error(hepErrorInvalidArgument, "row_gradients is given, but gradients is NULL");
  if (args.gradients != nullptr && args.row_gradients == nullptr && args.capacity > 0)
    return error(hepErrorInvalidArgument, "gradients is given, but row_gradients is NULL");
  return Status();
}

const char* token_limit_name(const RoutingState& routing) {
  if (routing.layout.max_tokens < routing.lane.shape.max_tokens) return "routing's max_tokens";
  return routing.lane.mode == hepModeLowLatency ? "config's low_latency_tokens"
                                                : "config's max_tokens";
}

}  // namespace

Status check_update(const RoutingState& routing, const hepUpdate_t& update) {
  const RoutingLayout& most = routing.layout;
  if (update.num_tokens < 0 || update.num_tokens > most.max_tokens)
    return error(hepErrorInvalidArgument,
                 "num_tokens of hepUpdate_t is %" PRId64 ", must be 0 to the %s, %d",
                 update.num_tokens, token_limit_name(routing), most.max_tokens);
  if (update.top_k < 1 || update.top_k > most.max_top_k)
    return error(hepErrorInvalidArgument,
                 "top_k of hepUpdate_t is %d, must be 1 to the %s's max_top_k, %d", update.top_k,
                 most.max_top_k < routing.config.max_top_k ? "routing" : "config", most.max_top_k);
  if (update.index_type < hepIndexInt32 || update.index_type > hepIndexMap)
    return error(hepErrorInvalidArgument,
                 "index_type of hepUpdate_t is %d, must be a hepIndexType_t", update.index_type);
  if (update.indices == nullptr && update.num_tokens > 0)
    return error(hepErrorInvalidArgument,
                 "indices of hepUpdate_t is NULL, but num_tokens is %" PRId64, update.num_tokens);
  const int alignment = update.index_type == hepIndexMap     ? 1
                        : update.index_type == hepIndexInt64 ? 8
                                                             : 4;
  return check_alignment(update.indices, alignment, "indices of hepUpdate_t");
}

Status resolve_dispatch(const RoutingState& routing, int64_t num_tokens, hepDispatchArgs_t* args) {
  const hepConfig_t& config = routing.config;
  ignore_unused(num_tokens, args);
  if (args->type == hepTypeDefault) args->type = config.type;
  HEP_TRY(check_layout(args->layout));
  HEP_TRY(resolve_hidden(config, &args->hidden));
  HEP_TRY(check_dispatch_rows(routing.lane.shape.row_bytes, *args));
  if (args->overflow != hepOverflowDrop && args->overflow != hepOverflowError)
    return error(hepErrorInvalidArgument, "overflow is %d, must be a hepOverflow_t",
                 args->overflow);

  HEP_TRY(check_rows(args->x, num_tokens, "x", "num_tokens"));
  HEP_TRY(check_capacity(args->rows, args->capacity, "rows"));
  HEP_TRY(check_quantization(config, *args));
  HEP_TRY(check_scales(routing, *args, num_tokens));
  HEP_TRY(resolve_dense("weights", "dense_weights", args->dense_weights, &args->weights));
  HEP_TRY(check_array(args->row_weights, "row_weights"));
  HEP_TRY(check_array(args->row_sources, "row_sources"));
  HEP_TRY(check_array(args->row_tokens, "row_tokens"));
  HEP_TRY(check_belongs(args->row_experts, "row_experts", args->layout, hepLayoutFlat,
                        "hepLayoutFlat"));
  HEP_TRY(check_expert_rows(*args));
  HEP_TRY(check_belongs(args->group_sizes, "group_sizes", args->layout, hepLayoutExpertMajor,
                        "hepLayoutExpertMajor"));
  HEP_TRY(check_alignment(args->group_sizes, sizeof(int64_t), "group_sizes"));
  HEP_TRY(check_alignment(args->row_counters, sizeof(int64_t), "row_counters"));
  return check_gather(*args);
}

Status resolve_combine(const RoutingState& routing, hepCombineArgs_t* args) {
  const hepConfig_t& config = routing.config;
  ignore_unused(routing.num_tokens, args);
  if (args->type == hepTypeDefault) args->type = config.combine_type;
  if (args->partial_type == hepTypeDefault) args->partial_type = config.partial_type;
  HEP_TRY(check_layout(args->layout));
  HEP_TRY(resolve_hidden(config, &args->hidden));
  HEP_TRY(check_combine_types(config, *args));
  HEP_TRY(check_partial_rows(routing.lane.shape.partial_row_bytes, *args));
  HEP_TRY(check_capacity(args->y, args->capacity, "y"));
  HEP_TRY(check_rows(args->out, routing.num_tokens, "out", "num_tokens"));
  HEP_TRY(check_weight_mode(routing, *args));
  HEP_TRY(resolve_dense("gradients", "dense_gradients", args->dense_gradients, &args->gradients));
  return check_gradients(routing, *args);
}

}  // namespace hep
