// SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_routing.h"

#include <algorithm>
#include <vector>

#include "cuda/kernels/launch.h"
#include "data_type.h"

namespace hep {
namespace {

// NULL is legal; whether a pointer may be NULL has been checked.
Status check_device_pointer(const void* pointer, const char* name, int device) {
  if (pointer == nullptr) return Status();
  cudaPointerAttributes attributes;
  HEP_CUDA_TRY(cudaPointerGetAttributes(&attributes, pointer));
  if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged)
    return error(hepErrorInvalidArgument,
                 "%s is %p, which is not device memory, as the cuda backend needs it", name,
                 pointer);
  if (attributes.type == cudaMemoryTypeDevice && attributes.device != device)
    return error(hepErrorInvalidArgument, "%s is %p, on device %d, but the rank is on device %d",
                 name, pointer, attributes.device, device);
  return Status();
}

}  // namespace

CudaRouting::~CudaRouting() {
  if (memory_) backend_.return_routing_memory(std::move(memory_));
}

Status CudaRouting::start() { return backend_.take_routing_memory(&memory_); }

Status CudaRouting::update(const void* indices, int num_tokens, int top_k,
                           hepIndexType_t index_type, hepStream_t stream) {
  const int device = backend_.context().device;
  const DeviceGuard guard(device);
  HEP_TRY(guard.status());
  HEP_TRY(check_device_pointer(indices, "indices", device));
  if (index_type == hepIndexMap && num_tokens > 0)
    HEP_TRY(list_map(static_cast<const uint8_t*>(indices), num_tokens, top_k, stream, &indices));
  const RouteArgs args{
      backend_.kernel_context(), memory_->get(), indices, num_tokens, top_k, alignment_};
  HEP_CUDA_TRY(launch_route(args, index_type == hepIndexInt64, backend_.context().plan, stream));
  num_tokens_ = num_tokens;
  top_k_ = top_k;
  return Status();
}

// Turns a map into indices. They lie where the weights of a dispatch will: those that are there have no
// more use once the routing is updated.
Status CudaRouting::list_map(const uint8_t* map, int num_tokens, int top_k, hepStream_t stream,
                             const void** indices) {
  const BackendContext& context = backend_.context();
  int32_t* listed = at<int32_t>(memory_->get(), context.routing_layout.weights);
  const MapArgs args{backend_.kernel_context().host, map,  listed, num_tokens,
                     context.shape.num_experts,      top_k};
  HEP_CUDA_TRY(launch_map(args, context.plan, stream));
  *indices = listed;
  return Status();
}

// Rows in the heap are read where they are; others are copied to the window, or quantised into it.
Status CudaRouting::publish_rows(const hepDispatchArgs_t& call, int64_t row_bytes,
                                 hepStream_t stream, uint64_t* rows_offset) {
  const BackendContext& context = backend_.context();
  char* window = static_cast<char*>(context.windows[context.rank]);
  if (call.quantize != hepQuantizeNone) {
    *rows_offset = context.window_layout.rows;
    if (num_tokens_ == 0) return Status();
    const QuantizeArgs args{context.window_layout, window,       call.x, num_tokens_,
                            context.shape.hidden,  call.quantize};
    HEP_CUDA_TRY(launch_quantize(args, context.plan, stream));
    return Status();
  }
  const void* x = call.x;
  bool in_heap;
  HEP_TRY(find_rows_in_heap(context, "x", x, num_tokens_, row_bytes, &in_heap));
  *rows_offset = in_heap ? static_cast<const char*>(x) - window : context.window_layout.rows;
  if (in_heap || num_tokens_ == 0) return Status();
  const size_t bytes = num_tokens_ * row_bytes;
  HEP_CUDA_TRY(cudaMemcpyAsync(window + context.window_layout.rows, x, bytes,
                               cudaMemcpyDeviceToDevice, stream));
  return Status();
}

// Outputs in the heap need not be sent if nothing is to be done to them first: the peers read them.
Status CudaRouting::find_outputs(const hepCombineArgs_t& call, uint64_t* outputs_offset) {
  const BackendContext& context = backend_.context();
  bool in_heap;
  HEP_TRY(find_outputs_in_heap(context, call, &in_heap));
  *outputs_offset = in_heap && sends_rows_as_they_are(call)
                        ? static_cast<const char*>(call.y) -
                              static_cast<const char*>(context.windows[context.rank])
                        : kNotInWindow;
  return Status();
}

Status CudaRouting::dispatch(const hepDispatchArgs_t& call, hepStream_t stream) {
  const int device = backend_.context().device;
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

  DispatchArgs args{};
  args.context = backend_.kernel_context();
  args.routing = memory_->get();
  args.num_tokens = num_tokens_;
  args.top_k = top_k_;
  args.call = call;
  args.row_bytes = backend_.context().shape.hidden * element_bytes(call.type);
  HEP_TRY(publish_rows(call, args.row_bytes, stream, &args.rows_offset));
  HEP_CUDA_TRY(launch_dispatch(args, backend_.context().plan, stream));
  return Status();
}

Status CudaRouting::combine(const hepCombineArgs_t& call, hepStream_t stream) {
  const int device = backend_.context().device;
  const DeviceGuard guard(device);
  HEP_TRY(guard.status());
  HEP_TRY(check_device_pointer(call.y, "y", device));
  HEP_TRY(check_device_pointer(call.row_weights, "row_weights", device));
  HEP_TRY(check_device_pointer(call.out, "out", device));
  HEP_TRY(check_device_pointer(call.row_gradients, "row_gradients", device));
  HEP_TRY(check_device_pointer(call.gradients, "gradients", device));

  CombineArgs args{};
  args.context = backend_.kernel_context();
  args.routing = memory_->get();
  args.num_tokens = num_tokens_;
  args.top_k = top_k_;
  args.call = call;
  const int hidden = backend_.context().shape.hidden;
  args.row_bytes = hidden * element_bytes(call.type);
  args.partial_row_bytes = hidden * element_bytes(call.partial_type);
  HEP_TRY(find_outputs(call, &args.outputs_offset));
  if (call.row_gradients != nullptr)
    HEP_CUDA_TRY(launch_send_gradients(args, backend_.context().plan, stream));
  HEP_CUDA_TRY(launch_combine(args, backend_.context().plan, stream));
  return Status();
}

Status CudaRouting::query(hepRoutingCounts_t* counts, hepStream_t stream) {
  const int device = backend_.context().device;
  const DeviceGuard guard(device);
  HEP_TRY(guard.status());
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  HEP_CUDA_TRY(cudaStreamIsCapturing(stream, &capture));
  if (capture != cudaStreamCaptureStatusNone)
    return error(hepErrorInvalidUsage, "hepRoutingQuery waits, so it cannot be captured");

  const RoutingLayout& layout = backend_.context().routing_layout;
  const int local_experts = backend_.context().shape.num_local_experts();
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
