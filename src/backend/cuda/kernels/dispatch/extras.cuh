// SPDX-License-Identifier: Apache-2.0
// What goes with the rows of a dispatch: origins, experts, weights, scales.
#pragma once

#include "backend/cuda/blocks/dispatch.h"
#include "backend/cuda/kernels/common/bit_cast.cuh"
#include "backend/cuda/kernels/common/routing_view.cuh"
#include "backend/cuda/kernels/common/warp.cuh"
#include "backend/cuda/kernels/dispatch/scales.cuh"
#include "protocol/at.h"
#include "protocol/output_layout.h"
#include "protocol/records.h"

namespace hep::dispatch {

// Where the experts' rows lie in the expert layouts, in the routing or in shared memory.
struct ExpertBlocks {
  const int32_t* counts;   // [EL] rows
  const int32_t* offsets;  // [EL + 1] aligned
};

// Calls body(place) for the padding places between the experts' blocks. All `workers` of the grid
// take turns at the places of each expert, so that all share the work however few experts there
// are; a lane has an expert.
template <typename Body>
__device__ void for_each_padding(const DispatchArgs& args, const ExpertBlocks& experts, int worker,
                                 int workers, Body body) {
  for (int e = warp_lane(); e < args.context.shape().num_local_experts(); e += kWarpSize)
    for (int place = experts.offsets[e] + experts.counts[e] + worker;
         place < experts.offsets[e + 1]; place += workers)
      body(place);
}

__device__ inline void write_row_origin(const DispatchCall& call, int64_t place, const Row& row) {
  if (call.row_sources != nullptr) call.row_sources[place] = row.source;
  if (call.row_tokens != nullptr) call.row_tokens[place] = row.token;
}

// Where the row goes that the lane has to write; kDropped if there is none: in the expert layouts
// the lane's selection has one, in flat the first lane of each row.
template <int kLayout>
__device__ int64_t place_of_warp_lane(const DispatchArgs& args, const ExpertBlocks& experts,
                                      const SelectionWarpLanes& lanes, uint32_t index,
                                      bool in_range, bool selected, const Selection& selection) {
  if (kLayout == hepLayoutFlat)
    return in_range && lanes.index == 0 && index < args.call.capacity ? index : kDropped;
  if (!selected) return kDropped;
  return row_of_selection(kLayout, args.call.capacity, args.context.routing_layout.num_experts,
                          experts.offsets, selection);
}

// Writes what belongs to rows, a few at a time: a lane for each selection, and in flat for each of
// the K entries of a row, which neighbouring lanes write to neighbouring places (a lane for each
// row, writing its entries one after the other, took bandwidth from the rows). `published` knows
// where the sources' weights and scales are, and whether these are to be forwarded here; weights
// are kept for combine.
template <int kLayout, typename Published>
struct RowExtras {
  const DispatchArgs& args;
  const Published& published;
  const ExpertBlocks& experts;
  const SelectionWarpLanes& lanes;
  FlatExtra* entries;  // [kWarpSize] of the warp, in shared memory

  // Of the rows from `first` on. By all lanes.
  __device__ void write(uint32_t first, uint32_t end) const {
    const DispatchCall& call = args.call;
    const uint32_t index = first + lanes.group;
    const bool in_range = lanes.group < lanes.groups && index < end;
    uint4 raw = make_uint4(0, 0, 0, 0);
    if (in_range) raw = routing_of(args).row_words()[index];
    const Row row = bit_cast<Row>(raw);
    const bool selected = in_range && lanes.index < row.count;

    Selection selection{0, 0, 0};
    float weight = 0.0f;
    if (selected) {
      selection = routing_of(args).selections()[row.first + lanes.index];
      weight = published.weight(row, selection.k);
    }
    const int64_t place =
        place_of_warp_lane<kLayout>(args, experts, lanes, index, in_range, selected, selection);
    if (call.row_scales != nullptr && published.forwards_scales()) {
      const char* scales = in_range ? published.scales(row) : nullptr;
      // Other lanes read them than waited for them, and a shuffle does not order memory.
      __syncwarp();
      forward_scales(args, lanes, scales, place, kLayout == hepLayoutFlat ? 1 : args.top_k);
    }
    // Not before the scales, which would then wait until the weights are here: a dispatch of 4096
    // FP8 tokens with scales on 2 H200s, 16 blocks, took 127 us instead of 110.
    if (selected && published.has_weights(row.source))
      routing_of(args).weights()[row.first + lanes.index] = weight;
    if (place != kDropped) write_row_origin(call, place, row);
    if (kLayout != hepLayoutFlat) {
      if (place != kDropped && call.row_weights != nullptr) call.row_weights[place] = weight;
      return;
    }
    const bool kept = index < call.capacity;
    if (selected && selection.place < call.gather_capacity)
      call.gather[selection.place] = kept ? static_cast<int32_t>(index) : -1;
    if (call.row_experts == nullptr && call.row_weights == nullptr) return;
    entries[warp_lane()] = {-1, 0.0f};
    __syncwarp();
    if (selected) entries[lanes.group * args.top_k + selection.k] = {selection.expert, weight};
    __syncwarp();
    const FlatExtra entry = entries[warp_lane()];
    __syncwarp();
    if (!in_range || !kept) return;
    const int64_t number = static_cast<int64_t>(first) * args.top_k + warp_lane();
    if (call.row_experts != nullptr) call.row_experts[number] = entry.expert;
    if (call.row_weights != nullptr) call.row_weights[number] = entry.weight;
  }
};

template <int kLayout>
__device__ void write_padding_extras(const DispatchArgs& args, const ExpertBlocks& experts,
                                     int worker, int workers) {
  const DispatchCall& call = args.call;
  if (kLayout == hepLayoutExpertPadded) return;
  for_each_padding(args, experts, worker, workers, [&](int place) {
    if (kLayout == hepLayoutFlat) {
      if (place < call.gather_capacity) call.gather[place] = -1;
    } else if (place < call.capacity) {
      if (call.row_scales != nullptr) zero_scales(args, place);
      if (call.row_weights != nullptr) call.row_weights[place] = 0.0f;
      if (call.row_sources != nullptr) call.row_sources[place] = -1;
      if (call.row_tokens != nullptr) call.row_tokens[place] = -1;
    }
  });
}

}  // namespace hep::dispatch
