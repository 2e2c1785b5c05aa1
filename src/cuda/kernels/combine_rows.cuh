// SPDX-License-Identifier: Apache-2.0
// Where a rank's rows of a token lie in the outputs of its experts, and what they weigh.
#pragma once

#include <type_traits>

#include "cuda/kernel_args.h"
#include "cuda/kernels/warp.cuh"

namespace hep {

constexpr int kAnyLayout = -1;

// What a kernel is compiled for: the types of rows and partial sums, and the layout.
template <typename RowType, typename PartialType, int kOfLayout>
struct Variant {
  using Type = RowType;
  using Partial = PartialType;
  static constexpr bool kOneType = std::is_same_v<Type, Partial>;

  static __device__ int layout(const CombineArgs& args) {
    return kOfLayout == kAnyLayout ? args.call.layout : kOfLayout;
  }

  // What sends_rows_as_they_are() says, as far as possible at compile time.
  static __device__ bool as_they_are(const CombineArgs& args) {
    return kOneType && layout(args) == hepLayoutFlat && args.call.weight_mode == hepWeightsNone;
  }
};

// What leads to this rank's rows of one token: in the expert layouts one a lane, by selection; in flat
// one, in lane 0. Looked up ahead of time: nothing in find_rows() waits for what is loaded.
struct TokenRows {
  Selection selection;  // of the lane, in the expert layouts
  float weight;         // of the lane's selection
};

template <typename V>
__device__ TokenRows find_rows(const CombineArgs& args, const Row& row) {
  const KernelContext& context = args.context;
  const uint32_t selection = row.first + lane_index();
  TokenRows found{{0, 0, 0}, 1.0f};
  if (lane_index() >= row.count) return found;
  if (V::layout(args) != hepLayoutFlat)
    found.selection = at<Selection>(args.routing, context.routing_layout.selections)[selection];
  if (args.call.weight_mode == hepWeightsDispatched)
    found.weight = at<float>(args.routing, context.routing_layout.weights)[selection];
  return found;
}

// Where the lane's row lies in y; kDropped if it has none.
template <typename V>
__device__ int64_t place_of_lane(const CombineArgs& args, const Row& row, uint32_t index,
                                 const TokenRows& found) {
  if (V::layout(args) == hepLayoutFlat)
    return lane_index() == 0 && index < args.call.capacity ? index : kDropped;
  if (lane_index() >= row.count) return kDropped;
  return row_of_selection(V::layout(args), args.call.capacity,
                          at<int32_t>(args.routing, args.context.routing_layout.expert_offsets),
                          found.selection);
}

// The weight of the lane's row. By all lanes.
template <typename V>
__device__ float weight_of(const CombineArgs& args, const Row& row, const TokenRows& found,
                           int64_t place) {
  if (args.call.weight_mode == hepWeightsRow)
    return place != kDropped ? args.call.row_weights[place] : 0.0f;
  if (V::layout(args) != hepLayoutFlat) return found.weight;
  // A flat row's weight is the sum of its selections'.
  float sum = found.weight;
  for (int i = 1; i < row.count && args.call.weight_mode == hepWeightsDispatched; ++i)
    sum += __shfl_sync(kFullWarp, found.weight, i);
  return sum;
}

}  // namespace hep
