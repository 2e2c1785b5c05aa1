// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/routing.h"

#include <algorithm>
#include <atomic>
#include <initializer_list>
#include <vector>

#include "backend/cuda/launch.h"
#include "protocol/at.h"
#include "protocol/data_type.h"
#include "protocol/location.h"
#include "protocol/routing_layout.h"
#include "protocol/window_layout.h"

namespace hep {
namespace {

// NULL is legal here; a pointer that must not be NULL has been checked before.
Status check_device_pointer(const void* pointer, const char* name, int device) {
  if (pointer == nullptr) return Status();
  cudaPointerAttributes attributes;
  HEP_CUDA_TRY(cudaPointerGetAttributes(&attributes, pointer));
  // Pages of managed memory may lie on the host. CUDA does not promise that bulk copies fetch them
  // there.
  if (attributes.type == cudaMemoryTypeManaged)
    return error(hepErrorInvalidArgument,
                 "%s is %p, which is managed memory; the cuda backend needs memory that stays on "
                 "the device",
                 name, pointer);
  if (attributes.type != cudaMemoryTypeDevice)
    return error(hepErrorInvalidArgument,
                 "%s is %p, which is not device memory, as the cuda backend needs it", name,
                 pointer);
  if (attributes.device != device)
    return error(hepErrorInvalidArgument, "%s is %p, on device %d, but the rank is on device %d",
                 name, pointer, attributes.device, device);
  return Status();
}

constexpr const char* kMemoryName = "memory of hepRoutingConfig_t";

struct NamedPointer {
  const void* pointer;
  const char* name;
};

Status check_device_pointers(std::initializer_list<NamedPointer> pointers, int device) {
  for (const NamedPointer& entry : pointers)
    HEP_TRY(check_device_pointer(entry.pointer, entry.name, device));
  return Status();
}

// Tells the update of a routing from what its memory held before.
uint64_t next_number() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

DispatchCall call_of(const hepDispatchArgs_t& given) {
  DispatchCall call{};
  call.layout = given.layout;
  call.overflow = given.overflow;
  call.type = given.type;
  call.quantize = given.quantize;
  call.hidden = static_cast<int32_t>(given.hidden);
  call.x = given.x;
  call.weights = given.weights;
  call.weights_are_dense = given.dense_weights != nullptr;
  call.rows = given.rows;
  call.capacity = given.capacity;
  call.row_weights = given.row_weights;
  call.row_experts = given.row_experts;
  call.row_sources = given.row_sources;
  call.row_tokens = given.row_tokens;
  call.gather = given.gather;
  call.gather_capacity = given.gather_capacity;
  call.expert_rows = given.expert_rows;
  call.group_sizes = given.group_sizes;
  call.row_counters = given.row_counters;
  call.scales = given.scales;
  call.row_scales = given.row_scales;
  call.row_scales_stride = given.row_scales_stride;
  call.scale_element_bytes = static_cast<int32_t>(given.scale_element_bytes);
  return call;
}

CombineCall call_of(const hepCombineArgs_t& given) {
  CombineCall call{};
  call.layout = given.layout;
  call.weight_mode = given.weight_mode;
  call.type = given.type;
  call.partial_type = given.partial_type;
  call.hidden = static_cast<int32_t>(given.hidden);
  call.y = given.y;
  call.capacity = given.capacity;
  call.row_weights = given.row_weights;
  call.out = given.out;
  call.row_gradients = given.row_gradients;
  call.gradients = given.gradients;
  call.gradients_are_dense = given.dense_gradients != nullptr;
  return call;
}

}  // namespace

CudaRouting::CudaRouting(CudaBackend& backend, CudaLane& lane, const RoutingRequest& request)
    : backend_(backend),
      lane_(lane),
      request_(request),
      kernel_(lane.kernel),
      number_(next_number()),
      memory_(request.memory) {
  kernel_.routing_layout = request.layout;
}

CudaRouting::~CudaRouting() {
  if (own_) backend_.return_routing_memory(lane_, std::move(own_));
}

Status CudaRouting::take_memory() {
  HEP_TRY(backend_.take_routing_memory(lane_, &own_));
  memory_ = own_->get();
  return Status();
}

Status CudaRouting::update(const TopK& choice, hepStream_t stream) {
  has_begun_ = false;
  const int device = backend_.device();
  const DeviceGuard guard(device);
  HEP_TRY(guard.status());
  HEP_TRY(check_device_pointers(
      {{request_.memory, kMemoryName}, {choice.indices, "indices of hepUpdate_t"}}, device));
  const NotedWork noted(lane_.work, stream);
  return run_update(choice, Step::kWhole, stream);
}

Status CudaRouting::run_update(TopK choice, Step step, hepStream_t stream) {
  HEP_TRY(list_map(step, stream, &choice));
  RouteArgs args{};
  args.context = kernel_;
  args.routing = memory_;
  args.routing_number = number_;
  args.indices = choice.indices;
  args.num_tokens = choice.batch.num_tokens;
  args.top_k = choice.batch.top_k;
  args.alignment = request_.alignment;
  args.step = step;
  HEP_CUDA_TRY(route::launch_route(args, choice.index_type, lane_.plan, stream));
  return Status();
}

// Turns a map into indices. They lie where the weights of a dispatch will lie. Weights of an
// earlier dispatch are of no use once the routing is updated.
Status CudaRouting::list_map(Step step, hepStream_t stream, TopK* choice) {
  if (choice->index_type != hepIndexMap) return Status();
  choice->index_type = hepIndexInt32;
  if (choice->batch.num_tokens == 0 || step == Step::kReceive) return Status();
  const LaneContext& context = lane_.context;
  int32_t* listed = at<int32_t>(memory_, request_.layout.weights);
  MapArgs args{};
  args.state = lane_.kernel.state;
  args.firsts = lane_.kernel.firsts;
  args.host = lane_.kernel.host;
  args.map = static_cast<const uint8_t*>(choice->indices);
  args.indices = listed;
  args.num_tokens = choice->batch.num_tokens;
  args.num_experts = context.lane.shape.num_experts;
  args.top_k = choice->batch.top_k;
  HEP_CUDA_TRY(route::launch_map(args, lane_.plan, stream));
  choice->indices = listed;
  return Status();
}

// Peers read rows in the heap or in registered memory in place. Other rows are copied to the window
// or quantised into it. In low-latency mode the dispatch itself does that. In halves it copies all
// rows, so that the second half need not wait until peers have read them.
Status CudaRouting::find_rows(DispatchArgs* args) {
  const LaneContext& context = lane_.context;
  const DispatchCall& call = args->call;
  DispatchedRows& rows = args->rows;
  const bool low_latency = context.lane.mode == hepModeLowLatency;
  const uint64_t window_rows = context.lane.window_layout.published;
  rows.row_bytes = call.hidden * element_bytes(call.type);
  rows.location = window_rows;
  rows.publishing = Publishing::kDone;
  if (call.quantize != hepQuantizeNone) {
    if (low_latency) rows.publishing = Publishing::kQuantizes;
    return Status();
  }
  const int64_t num_rows = args->num_tokens;
  const int64_t bytes = num_rows * rows.row_bytes;
  bool in_heap;
  HEP_TRY(find_rows_in_heap(context, "x", call.x, num_rows, rows.row_bytes, &in_heap));
  const auto is_small = [&] {
    return bytes <= most_copied_bytes(lane_.plan, dispatch_blocks(lane_.plan, work_of(*args)));
  };
  const bool copies = args->step != Step::kWhole || (low_latency && is_small());
  if (!copies && in_heap)
    rows.location =
        static_cast<const char*>(call.x) - static_cast<const char*>(context.windows[context.rank]);
  else if (!copies && num_rows > 0)
    backend_.registrations().find_location(call.x, bytes, &rows.location);
  if (low_latency && rows.location == window_rows) rows.publishing = Publishing::kCopies;
  return Status();
}

// Publishes the rows that the dispatch does not publish itself.
Status CudaRouting::publish_rows(const DispatchArgs& args, hepStream_t stream) {
  const LaneContext& context = lane_.context;
  const WindowLayout& layout = context.lane.window_layout;
  const DispatchCall& call = args.call;
  if (args.num_tokens == 0 || args.rows.publishing != Publishing::kDone ||
      args.rows.location != layout.published)
    return Status();
  char* window = static_cast<char*>(context.windows[context.rank]);
  if (call.quantize == hepQuantizeNone) {
    const size_t bytes = int64_t{args.num_tokens} * args.rows.row_bytes;
    HEP_CUDA_TRY(cudaMemcpyAsync(window + layout.published, call.x, bytes, cudaMemcpyDeviceToDevice,
                                 stream));
    return Status();
  }
  QuantizeArgs quantize{};
  quantize.x = call.x;
  quantize.rows = window + layout.published;
  quantize.scales = window + layout.scales_at(0, 0);
  quantize.scale_stride = context.lane.shape.scale_stride();
  quantize.scale_bytes = context.lane.shape.scale_bytes;
  quantize.num_tokens = args.num_tokens;
  quantize.hidden = call.hidden;
  quantize.quantize = call.quantize;
  const Grid grid = plan_quantize(lane_.plan, args);
  HEP_CUDA_TRY(dispatch::launch_quantize(quantize, grid, stream));
  return Status();
}

// Peers read outputs in the heap or in registered memory in place if they need no change first. In
// halves all outputs are sent, so that the second half need not wait until peers have read them.
Status CudaRouting::find_outputs(const hepCombineArgs_t& call, CombineArgs* args) {
  const LaneContext& context = lane_.context;
  ReadableOutputs& outputs = args->outputs;
  bool in_heap;
  HEP_TRY(find_outputs_in_heap(context, call, &in_heap));
  outputs.location = kNotInWindow;
  if (!sends_unmodified_rows(args->call) || args->step != Step::kWhole) return Status();
  const int64_t row_bytes = args->row_bytes;
  if (context.lane.mode == hepModeLowLatency)
    outputs.most_sent_rows =
        most_sent_rows(lane_.plan, combine_blocks(lane_.plan, work_of(*args)), row_bytes);
  if (in_heap)
    outputs.location =
        static_cast<const char*>(call.y) - static_cast<const char*>(context.windows[context.rank]);
  else if (call.capacity > 0 && call.capacity <= INT64_MAX / row_bytes)
    backend_.registrations().find_location(call.y, call.capacity * row_bytes, &outputs.location);
  return Status();
}

Status CudaRouting::dispatch(const DispatchRequest& request, const Batch& batch, Step step,
                             hepStream_t stream) {
  has_begun_ = false;
  const hepDispatchArgs_t& call = request.args;
  TopK choice = request.update.value_or(TopK{});
  const int device = backend_.device();
  const DeviceGuard guard(device);
  HEP_TRY(guard.status());
  if (request.update) HEP_TRY(check_device_pointer(request_.memory, kMemoryName, device));
  HEP_TRY(check_device_pointers({{call.x, "x"},
                                 {call.dense_weights, "dense_weights"},
                                 {call.weights, "weights"},
                                 {call.rows, "rows"},
                                 {call.row_weights, "row_weights"},
                                 {call.row_experts, "row_experts"},
                                 {call.row_sources, "row_sources"},
                                 {call.row_tokens, "row_tokens"},
                                 {call.gather, "gather"},
                                 {call.scales, "scales"},
                                 {call.row_scales, "row_scales"},
                                 {call.expert_rows, "expert_rows"},
                                 {call.group_sizes, "group_sizes"},
                                 {call.row_counters, "row_counters"},
                                 {choice.indices, "indices of hepUpdate_t"}},
                                device));

  UpdateArgs args{};
  args.context = kernel_;
  args.routing = memory_;
  args.routing_number = number_;
  args.num_tokens = batch.num_tokens;
  args.top_k = batch.top_k;
  args.alignment = request_.alignment;
  args.step = step;
  args.call = call_of(call);
  HEP_TRY(find_rows(&args));
  const NotedWork noted(lane_.work, stream);
  const bool in_one_launch = request.update && lane_.context.lane.shape.choice_tokens > 0;
  if (in_one_launch)
    HEP_TRY(list_map(step, stream, &choice));
  else if (request.update)
    HEP_TRY(run_update(choice, step, stream));
  has_begun_ = request.update && !in_one_launch;
  if (step != Step::kReceive) HEP_TRY(publish_rows(args, stream));
  const Plan& plan = lane_.plan;
  if (!in_one_launch) {
    HEP_CUDA_TRY(dispatch::launch_dispatch(args, plan, stream));
    return Status();
  }
  args.indices = choice.indices;
  HEP_CUDA_TRY(fused::launch_update_and_dispatch(args, choice.index_type, plan, stream));
  return Status();
}

Status CudaRouting::combine(const hepCombineArgs_t& call, const Batch& batch, Step step,
                            hepStream_t stream) {
  has_begun_ = false;
  const int device = backend_.device();
  const DeviceGuard guard(device);
  HEP_TRY(guard.status());
  HEP_TRY(check_device_pointers({{call.y, "y"},
                                 {call.row_weights, "row_weights"},
                                 {call.out, "out"},
                                 {call.row_gradients, "row_gradients"},
                                 {call.dense_gradients, "dense_gradients"},
                                 {call.gradients, "gradients"}},
                                device));

  CombineArgs args{};
  args.context = kernel_;
  args.routing = memory_;
  args.routing_number = number_;
  args.num_tokens = batch.num_tokens;
  args.top_k = batch.top_k;
  args.step = step;
  args.call = call_of(call);
  const int hidden = static_cast<int>(call.hidden);
  args.row_bytes = hidden * element_bytes(call.type);
  args.partial_row_bytes = hidden * element_bytes(call.partial_type);
  HEP_TRY(find_outputs(call, &args));
  const NotedWork noted(lane_.work, stream);
  const bool sends_gradients =
      (call.row_gradients != nullptr || call.dense_gradients != nullptr) && step != Step::kReceive;
  if (sends_gradients) HEP_CUDA_TRY(combine::launch_send_gradients(args, lane_.plan, stream));
  has_begun_ = sends_gradients;
  HEP_CUDA_TRY(combine::launch_combine(args, lane_.plan, stream));
  return Status();
}

Status CudaRouting::query(hepRoutingCounts_t* counts, hepStream_t stream) {
  const int device = backend_.device();
  const DeviceGuard guard(device);
  HEP_TRY(guard.status());
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  HEP_CUDA_TRY(cudaStreamIsCapturing(stream, &capture));
  if (capture != cudaStreamCaptureStatusNone)
    return error(hepErrorInvalidUsage, "hepRoutingQuery waits, so it cannot be captured");

  const RoutingLayout& layout = request_.layout;
  const int local_experts = lane_.context.lane.shape.num_local_experts();
  RoutingTotals totals;
  int32_t padded_rows;
  std::vector<int32_t> tokens_per_expert(local_experts);
  const auto fetch = [&](void* to, uint64_t offset, size_t bytes) {
    return cudaMemcpyAsync(to, at<char>(memory_, offset), bytes, cudaMemcpyDeviceToHost, stream);
  };
  HEP_CUDA_TRY(fetch(&totals, layout.totals, sizeof totals));
  HEP_CUDA_TRY(fetch(&padded_rows, layout.expert_offsets + local_experts * sizeof(int32_t),
                     sizeof padded_rows));
  HEP_CUDA_TRY(
      fetch(tokens_per_expert.data(), layout.tokens_per_expert, local_experts * sizeof(int32_t)));
  HEP_CUDA_TRY(cudaStreamSynchronize(stream));

  counts->num_flat_rows = totals.num_flat_rows;
  counts->num_expert_rows = totals.num_expert_rows;
  counts->num_padded_rows = padded_rows;
  counts->max_expert_rows = *std::max_element(tokens_per_expert.begin(), tokens_per_expert.end());
  counts->max_selections = totals.max_selections;
  if (counts->tokens_per_expert != nullptr)
    std::copy(tokens_per_expert.begin(), tokens_per_expert.end(), counts->tokens_per_expert);
  return Status();
}

}  // namespace hep
