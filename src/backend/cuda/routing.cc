// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/routing.h"

#include <algorithm>
#include <vector>

#include "backend/cuda/launch.h"
#include "protocol/at.h"
#include "protocol/data_type.h"
#include "protocol/location.h"
#include "protocol/routing_layout.h"
#include "protocol/window_layout.h"

namespace hep {
namespace {

// NULL is legal; whether a pointer may be NULL has been checked.
Status check_device_pointer(const void* pointer, const char* name, int device) {
  if (pointer == nullptr) return Status();
  cudaPointerAttributes attributes;
  HEP_CUDA_TRY(cudaPointerGetAttributes(&attributes, pointer));
  // Its pages may lie on the host, from where CUDA does not promise that bulk copies fetch them.
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

}  // namespace

CudaRouting::~CudaRouting() {
  if (memory_) backend_.return_routing_memory(lane_, std::move(memory_));
}

Status CudaRouting::start() { return backend_.take_routing_memory(lane_, &memory_); }

Status CudaRouting::update(const void* indices, const Batch& batch, hepIndexType_t index_type,
                           hepStream_t stream) {
  const int device = backend_.device();
  const DeviceGuard guard(device);
  HEP_TRY(guard.status());
  HEP_TRY(check_device_pointer(indices, "indices", device));
  const NotedWork noted(lane_.work, stream);
  return run_update({indices, batch, index_type}, Half::kBoth, stream);
}

Status CudaRouting::run_update(TopK choice, Half half, hepStream_t stream) {
  HEP_TRY(list_map(half, stream, &choice));
  const RouteArgs args{lane_.kernel,
                       memory_->get(),
                       choice.indices,
                       choice.batch.num_tokens,
                       choice.batch.top_k,
                       alignment_,
                       half};
  HEP_CUDA_TRY(
      route::launch_route(args, choice.index_type == hepIndexInt64, lane_.context.plan, stream));
  return Status();
}

// Turns a map, if that is what it is, into indices. They lie where the weights of a dispatch will: those that
// are there have no more use once the routing is updated.
Status CudaRouting::list_map(Half half, hepStream_t stream, TopK* choice) {
  if (choice->index_type != hepIndexMap || choice->batch.num_tokens == 0 || half == Half::kReceive)
    return Status();
  const LaneContext& context = lane_.context;
  int32_t* listed = at<int32_t>(memory_->get(), context.routing_layout.weights);
  const MapArgs args{lane_.kernel.firsts,
                     lane_.kernel.host,
                     static_cast<const uint8_t*>(choice->indices),
                     listed,
                     choice->batch.num_tokens,
                     context.shape.num_experts,
                     choice->batch.top_k};
  HEP_CUDA_TRY(route::launch_map(args, context.plan, stream));
  choice->indices = listed;
  return Status();
}

// Copies of so few bytes spare the wait for the readers, two microseconds and more. (On 2 H200s, those of 230
// KB a block took 4 us longer than it.)
constexpr int64_t kCopiedBytesOfBlock = 64 * 1024;

// Rows in the heap or in registered memory are read where they are; others are copied to the window, or
// quantised into it: by the dispatch itself where latency counts. In halves it copies all, so that the
// second half waits for nobody to read.
Status CudaRouting::find_rows(const hepDispatchArgs_t& call, const Batch& batch, Half half,
                              DispatchArgs* args) {
  const LaneContext& context = lane_.context;
  const bool low_latency = context.mode == hepModeLowLatency;
  const uint64_t window_rows = context.window_layout.published;
  args->rows_place = window_rows;
  args->publishing = Publishing::kDone;
  if (call.quantize != hepQuantizeNone) {
    if (low_latency) args->publishing = Publishing::kQuantizes;
    return Status();
  }
  const int64_t num_rows = batch.num_tokens;
  const int64_t row_bytes = context.shape.hidden * element_bytes(call.type);
  bool in_heap;
  HEP_TRY(find_rows_in_heap(context, "x", call.x, num_rows, row_bytes, &in_heap));
  const bool copies =
      half != Half::kBoth ||
      (low_latency && num_rows * row_bytes <= context.plan.dispatch_blocks * kCopiedBytesOfBlock);
  if (!copies && in_heap)
    args->rows_place =
        static_cast<const char*>(call.x) - static_cast<const char*>(context.windows[context.rank]);
  else if (!copies && num_rows > 0)
    backend_.registrations().find_place(call.x, num_rows * row_bytes, &args->rows_place);
  if (low_latency && args->rows_place == window_rows) args->publishing = Publishing::kCopies;
  return Status();
}

// What the dispatch does not do itself.
Status CudaRouting::publish_rows(const DispatchArgs& args, hepStream_t stream) {
  const LaneContext& context = lane_.context;
  const WindowLayout& layout = context.window_layout;
  const hepDispatchArgs_t& call = args.call;
  if (args.num_tokens == 0 || args.publishing != Publishing::kDone ||
      args.rows_place != layout.published)
    return Status();
  char* window = static_cast<char*>(context.windows[context.rank]);
  if (call.quantize == hepQuantizeNone) {
    const size_t bytes = int64_t{args.num_tokens} * args.row_bytes;
    HEP_CUDA_TRY(cudaMemcpyAsync(window + layout.published, call.x, bytes, cudaMemcpyDeviceToDevice,
                                 stream));
    return Status();
  }
  const QuantizeArgs quantize{call.x,
                              window + layout.published,
                              window + layout.scales_at(0, 0),
                              context.shape.scale_stride(),
                              context.shape.scale_bytes,
                              args.num_tokens,
                              context.shape.hidden,
                              call.quantize};
  HEP_CUDA_TRY(dispatch::launch_quantize(quantize, context.plan, stream));
  return Status();
}

// So few bytes of outputs are sent sooner than others can know that they may read them. (On 2 H200s, 64 rows of
// 14 KiB took 15.4 us instead of 17.0, with 28 KiB a block; 256 of them 23 instead of 21.)
constexpr int64_t kSentBytesOfBlock = 64 * 1024;

// Outputs in the heap or in registered memory need not be sent if nothing is to be done to them first:
// the peers read them. In halves they are, so that the second half waits for nobody to read.
Status CudaRouting::find_outputs(const hepCombineArgs_t& call, Half half, CombineArgs* args) {
  const LaneContext& context = lane_.context;
  bool in_heap;
  HEP_TRY(find_outputs_in_heap(context, call, &in_heap));
  args->outputs_place = kNotInWindow;
  if (!sends_rows_as_they_are(call) || half != Half::kBoth) return Status();
  const int64_t row_bytes = int64_t{context.shape.hidden} * element_bytes(call.type);
  if (context.mode == hepModeLowLatency)
    args->most_sent_rows = context.plan.combine_in_place.blocks * kSentBytesOfBlock / row_bytes;
  if (in_heap)
    args->outputs_place =
        static_cast<const char*>(call.y) - static_cast<const char*>(context.windows[context.rank]);
  else if (call.capacity > 0 && call.capacity <= INT64_MAX / row_bytes)
    backend_.registrations().find_place(call.y, call.capacity * row_bytes, &args->outputs_place);
  return Status();
}

Status CudaRouting::dispatch(const hepDispatchArgs_t& call, const Batch& batch, Half half,
                             hepStream_t stream) {
  const int device = backend_.device();
  const DeviceGuard guard(device);
  HEP_TRY(guard.status());
  HEP_TRY(check_device_pointer(call.x, "x", device));
  HEP_TRY(check_device_pointer(call.weights, "weights", device));
  HEP_TRY(check_device_pointer(call.rows, "rows", device));
  HEP_TRY(check_device_pointer(call.row_weights, "row_weights", device));
  HEP_TRY(check_device_pointer(call.row_experts, "row_experts", device));
  HEP_TRY(check_device_pointer(call.row_sources, "row_sources", device));
  HEP_TRY(check_device_pointer(call.row_tokens, "row_tokens", device));
  HEP_TRY(check_device_pointer(call.gather, "gather", device));
  HEP_TRY(check_device_pointer(call.scales, "scales", device));
  HEP_TRY(check_device_pointer(call.row_scales, "row_scales", device));
  HEP_TRY(check_device_pointer(call.expert_rows, "expert_rows", device));
  HEP_TRY(check_device_pointer(call.indices, "indices", device));

  DispatchArgs args{};
  HEP_TRY(find_rows(call, batch, half, &args));
  const NotedWork noted(lane_.work, stream);
  args.alignment = alignment_;
  const bool in_one_launch = call.update != 0 && lane_.context.shape.choice_tokens > 0;
  if (call.update != 0) {
    TopK choice{call.indices, batch, call.index_type};
    if (in_one_launch)
      HEP_TRY(list_map(half, stream, &choice));
    else
      HEP_TRY(run_update(choice, half, stream));
    args.indices = choice.indices;
    args.index64 = choice.index_type == hepIndexInt64;
  }
  args.context = lane_.kernel;
  args.routing = memory_->get();
  args.num_tokens = batch.num_tokens;
  args.top_k = batch.top_k;
  args.call = call;
  args.row_bytes = lane_.context.shape.hidden * element_bytes(call.type);
  args.half = half;
  if (half != Half::kReceive) HEP_TRY(publish_rows(args, stream));
  const auto launch = in_one_launch ? fused::launch_update_and_dispatch : dispatch::launch_dispatch;
  HEP_CUDA_TRY(launch(args, lane_.context.plan, stream));
  return Status();
}

Status CudaRouting::combine(const hepCombineArgs_t& call, const Batch& batch, Half half,
                            hepStream_t stream) {
  const int device = backend_.device();
  const DeviceGuard guard(device);
  HEP_TRY(guard.status());
  HEP_TRY(check_device_pointer(call.y, "y", device));
  HEP_TRY(check_device_pointer(call.row_weights, "row_weights", device));
  HEP_TRY(check_device_pointer(call.out, "out", device));
  HEP_TRY(check_device_pointer(call.row_gradients, "row_gradients", device));
  HEP_TRY(check_device_pointer(call.gradients, "gradients", device));

  CombineArgs args{};
  args.context = lane_.kernel;
  args.routing = memory_->get();
  args.num_tokens = batch.num_tokens;
  args.top_k = batch.top_k;
  args.call = call;
  const int hidden = lane_.context.shape.hidden;
  args.row_bytes = hidden * element_bytes(call.type);
  args.partial_row_bytes = hidden * element_bytes(call.partial_type);
  HEP_TRY(find_outputs(call, half, &args));
  args.half = half;
  const NotedWork noted(lane_.work, stream);
  if (call.row_gradients != nullptr && half != Half::kReceive)
    HEP_CUDA_TRY(combine::launch_send_gradients(args, lane_.context.plan, stream));
  HEP_CUDA_TRY(combine::launch_combine(args, lane_.context.plan, stream));
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

  const RoutingLayout& layout = lane_.context.routing_layout;
  const int local_experts = lane_.context.shape.num_local_experts();
  RoutingTotals totals;
  int32_t padded_rows;
  std::vector<int32_t> tokens_per_expert(local_experts);
  const auto fetch = [&](void* to, uint64_t offset, size_t bytes) {
    return cudaMemcpyAsync(to, at<char>(memory_->get(), offset), bytes, cudaMemcpyDeviceToHost,
                           stream);
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
  if (counts->tokens_per_expert != nullptr)
    std::copy(tokens_per_expert.begin(), tokens_per_expert.end(), counts->tokens_per_expert);
  return Status();
}

}  // namespace hep
