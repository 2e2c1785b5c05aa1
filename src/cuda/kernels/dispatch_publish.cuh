// SPDX-License-Identifier: Apache-2.0
// What a dispatch makes known to the peers: where its rows lie, and what goes with them. In low-latency mode
// it brings the rows to the window, too.
#pragma once

#include "cuda/kernels/quantize.cuh"
#include "cuda/kernels/scales.cuh"
#include "cuda/kernels/signal.cuh"
#include "cuda/kernels/warp.cuh"

namespace hep {

// The rows lie in the window already; weights and scales follow.
__device__ inline void signal_rows(const DispatchArgs& args, uint64_t epoch, uint64_t call) {
  for (int rank = threadIdx.x; rank < args.context.num_ranks(); rank += blockDim.x) {
    Signals* signals = args.context.signals_to(rank);
    ptx::st_relaxed_sys(&signals->rows_offset, args.rows_offset);
    ptx::st_relaxed_sys(&signals->has_weights, args.call.weights != nullptr);
    ptx::st_relaxed_sys(&signals->has_scales, args.call.scales != nullptr);
    ptx::st_relaxed_sys(&signals->dispatch_call, call);
    ptx::st_release_sys(&signals->rows_ready, epoch);
  }
}

// By all blocks.
__device__ inline void publish_weights(const DispatchArgs& args) {
  const KernelContext& context = args.context;
  float* published = at<float>(context.own_window(), context.window_layout.weights);
  const int count = args.num_tokens * args.top_k;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x)
    published[i] = args.call.weights[i];
}

// Copies that a thread has on their way at once.
constexpr int kVectorsAtOnce = 4;

// Waits until the peers have read what the dispatch before published, and its signals. Where that waited
// at its end, there is nothing to wait for. False as wait_until().
__device__ inline bool wait_for_readers(const DispatchArgs& args, uint64_t epoch) {
  const KernelContext& context = args.context;
  if (context.mode != hepModeLowLatency) return true;
  bool free = true;
  for (int rank = threadIdx.x; rank < context.num_ranks(); rank += blockDim.x)
    free &= wait_for(context, {hepOperationDispatch, hepPhaseReaders, rank, epoch},
                     &context.signals_from(rank)->rows_read, epoch - 1);
  return __syncthreads_and(free);
}

// By all blocks.
__device__ inline void publish_rows(const DispatchArgs& args) {
  const KernelContext& context = args.context;
  char* rows = at<char>(context.own_window(), args.rows_offset);
  if (args.publishing == Publishing::kQuantizes) {
    quantize_rows({args.call.x, rows, at<char>(context.own_window(), context.window_layout.scales),
                   context.shape().scale_stride(), context.shape().scale_bytes, args.num_tokens,
                   context.shape().hidden, args.call.quantize});
    return;
  }
  const uint4* x = static_cast<const uint4*>(args.call.x);
  const uint32_t count = args.num_tokens * (args.row_bytes / sizeof(uint4));
  for_each_loaded<kVectorsAtOnce>(
      blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x, count,
      [&](uint32_t i) { return __ldcs(x + i); },
      [&](uint32_t i, const uint4& vector) { reinterpret_cast<uint4*>(rows)[i] = vector; });
}

// Rows that lie where the peers read them are made known first of all, by one block: a release waits for
// what its threads have sent before. False as wait_until().
__device__ inline bool publish_early(const DispatchArgs& args, uint64_t epoch, uint64_t call) {
  if (args.publishing != Publishing::kDone || blockIdx.x != gridDim.x - 1) return true;
  if (!wait_for_readers(args, epoch)) return false;
  signal_rows(args, epoch, call);
  return true;
}

// All blocks bring the rest of what the peers read to the window; the last to come signals. False as
// wait_until().
__device__ inline bool publish(const DispatchArgs& args, uint64_t epoch, uint64_t call) {
  const KernelContext& context = args.context;
  const bool has_rows = args.publishing != Publishing::kDone;
  const bool has_weights = args.call.weights != nullptr && !args.updates;  // else sent with choices
  const bool has_extras = has_weights || args.call.scales != nullptr;
  if (!has_rows && !has_extras) return true;
  if (!wait_for_readers(args, epoch)) return false;
  if (has_weights) publish_weights(args);
  if (args.call.scales != nullptr) publish_scales(args);
  if (has_rows) publish_rows(args);
  if (!arrive_is_last(&context.state->extras_published)) return true;
  if (has_rows) signal_rows(args, epoch, call);
  if (has_extras)
    for (int rank = threadIdx.x; rank < context.num_ranks(); rank += blockDim.x)
      ptx::st_release_sys(&context.signals_to(rank)->weights_ready, epoch);
  return true;
}

}  // namespace hep
