// SPDX-License-Identifier: Apache-2.0
// Where a rank's rows of a token lie in the outputs of its experts, and what they weigh.
#pragma once

#include <type_traits>

#include "backend/cuda/kernel_args.h"
#include "backend/cuda/kernels/combine/contribution.cuh"
#include "backend/cuda/kernels/common/bit_cast.cuh"
#include "backend/cuda/kernels/common/routing_view.cuh"
#include "backend/cuda/kernels/common/warp.cuh"
#include "protocol/at.h"
#include "protocol/output_layout.h"
#include "protocol/records.h"
#include "protocol/routing_layout.h"

namespace hep::combine {

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

  // Whether this rank's outputs for its own tokens are added up where they lie, with the others'
  // partial sums: of which one less is written and read, a tenth of all that an expert-major
  // combine moves on 4 ranks.
  static constexpr bool kOwnInPlace = kOneType;

  // What sends_unmodified_rows() says, as far as possible at compile time.
  static __device__ bool unmodified(const CombineArgs& args) {
    return kOneType && layout(args) == hepLayoutFlat && args.call.weight_mode == hepWeightsNone;
  }
};

// Records are held one a lane and handed round by shuffles.
__device__ inline Row row_of_warp_lane(const uint4& record, int lane) {
  uint4 raw;
  raw.x = __shfl_sync(kFullWarp, record.x, lane);
  raw.y = __shfl_sync(kFullWarp, record.y, lane);
  raw.z = __shfl_sync(kFullWarp, record.z, lane);
  raw.w = 0;
  return bit_cast<Row>(raw);
}

// How many rows of y a flat row has: in flat itself, in the expert layouts one for each selection.
template <typename V>
__device__ uint32_t rows_of(const CombineArgs& args, const Row& row) {
  return V::layout(args) == hepLayoutFlat ? 1 : row.count;
}

// A row of y. `address` is NULL if it was dropped.
struct OutputRow {
  const char* address;
  float weight;
};

// A flat row's weight is the sum of its selections'.
__device__ inline float dispatched_weight(const CombineArgs& args, const Row& row) {
  const float* weights = routing_of(args).weights() + row.first;
  float sum = weights[0];
  for (int i = 1; i < row.count; ++i) sum += weights[i];
  return sum;
}

// Row `number` of those that flat row `index` has.
template <typename V>
__device__ OutputRow find_output(const CombineArgs& args, const Row& row, uint32_t index,
                                 uint32_t number) {
  const RoutingLayout& layout = args.context.routing_layout;
  const bool flat = V::layout(args) == hepLayoutFlat;
  Selection selection{};
  if (!flat) selection = routing_of(args).selections()[row.first + number];
  // Asked for before it is known whether the row was dropped, so that both are on their way at
  // once.
  float weight = 1.0f;
  if (args.call.weight_mode == hepWeightsDispatched)
    weight = flat ? dispatched_weight(args, row) : routing_of(args).weights()[row.first + number];
  int64_t place = index < args.call.capacity ? index : kDropped;
  if (!flat)
    place = row_of_selection(V::layout(args), args.call.capacity, layout.num_experts,
                             routing_of(args).expert_offsets(), selection);
  if (place == kDropped) return {nullptr, 0.0f};
  if (args.call.weight_mode == hepWeightsRow) weight = args.call.row_weights[place];
  return {static_cast<const char*>(args.call.y) + place * args.row_bytes, weight};
}

// The lanes whose rows contribute: those that were not dropped, or, if all of an entry's were, its
// first, which then contributes nothing.
__device__ inline uint32_t contributing_warp_lanes(const EntryItems::Batch& items,
                                                   const char* row) {
  const uint32_t kept = __ballot_sync(kFullWarp, items.siblings != 0 && row != nullptr);
  const bool stands_in = items.index == 0 && (kept & items.siblings) == 0;
  return __ballot_sync(kFullWarp, items.siblings != 0 && (row != nullptr || stands_in));
}

}  // namespace hep::combine
