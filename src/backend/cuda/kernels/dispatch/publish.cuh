// SPDX-License-Identifier: Apache-2.0
// What a dispatch brings to the window for the peers to read: weights, scales, and in low-latency
// mode rows. Each block brings what belongs to its part of the tokens.
#pragma once

#include "backend/cuda/kernels/common/routing_view.cuh"
#include "backend/cuda/kernels/common/warp.cuh"
#include "backend/cuda/kernels/dispatch/quantize.cuh"
#include "backend/cuda/kernels/dispatch/scales.cuh"
#include "protocol/at.h"
#include "protocol/records.h"
#include "protocol/window_layout.h"

namespace hep::dispatch {

// Where this rank's rows lie once they are published.
__device__ inline uint64_t rows_location(const DispatchArgs& args, uint64_t epoch) {
  return args.rows.publishing == Publishing::kDone ? args.rows.location
                                                   : args.context.window_layout.published_by(epoch);
}

// The block's part of this rank's tokens. The last blocks begin: the first have the first of the
// rows to move.
__device__ inline TokenRange tokens_to_publish(const DispatchArgs& args) {
  const int tokens = Divisor(gridDim.x)(args.num_tokens + gridDim.x - 1);
  return part_of_tokens(args.num_tokens, gridDim.x - 1 - blockIdx.x, tokens);
}

// The weight of a selection of this rank; of none if it has no expert.
__device__ inline float weight_of(const DispatchArgs& args, int selection, Divisor by_top_k) {
  if (!args.call.weights_are_dense) return args.call.weights[selection];
  const uint16_t expert = routing_of(args).own_experts()[selection];
  if (expert == kNoExpert) return 0.0f;
  return args.call
      .weights[static_cast<int64_t>(by_top_k(selection)) * args.context.shape().num_experts +
               expert];
}

__device__ inline void publish_weights(const DispatchArgs& args, uint64_t epoch, TokenRange tokens,
                                       WorkShare threads) {
  float* published = at<float>(args.context.own_window(),
                               args.context.window_layout.weights_at(epoch, 0, args.top_k));
  const Divisor by_top_k(args.top_k);
  static_assert(kMaxTokens * kMaxTopK <= Divisor::kLimit);
  for (int i = tokens.begin * args.top_k + threads.index; i < tokens.end * args.top_k;
       i += threads.count)
    published[i] = weight_of(args, i, by_top_k);
}

// Copies that a thread has on their way at once.
constexpr int kVectorsAtOnce = 4;

// By whole warps.
__device__ inline void publish_rows(const DispatchArgs& args, uint64_t epoch, TokenRange tokens,
                                    WorkShare threads) {
  const KernelContext& context = args.context;
  const WindowLayout& layout = context.window_layout;
  char* rows = at<char>(context.own_window(), layout.published_by(epoch));
  if (args.rows.publishing == Publishing::kQuantizes) {
    QuantizeArgs quantize{};
    quantize.x = args.call.x;
    quantize.rows = rows;
    quantize.scales = at<char>(context.own_window(), layout.scales_at(epoch, 0));
    quantize.scale_stride = context.shape().scale_stride();
    quantize.scale_bytes = context.shape().scale_bytes;
    quantize.num_tokens = args.num_tokens;
    quantize.hidden = args.call.hidden;
    quantize.quantize = args.call.quantize;
    quantize_rows(quantize, tokens, threads);
    return;
  }
  const uint4* x = static_cast<const uint4*>(args.call.x);
  const uint32_t vectors = args.rows.row_bytes / sizeof(uint4);
  for_each_loaded<kVectorsAtOnce>(
      tokens.begin * vectors + threads.index, threads.count, tokens.end * vectors,
      [&](uint32_t i) { return __ldcs(x + i); },
      [&](uint32_t i, const uint4& vector) { reinterpret_cast<uint4*>(rows)[i] = vector; });
}

}  // namespace hep::dispatch
