// SPDX-License-Identifier: Apache-2.0
// What goes with the rows of a dispatch: origins, experts, weights, scales. Some warps of each block write
// them while the others move the rows.
#pragma once

#include "cuda/kernels/choices.cuh"
#include "cuda/kernels/scales.cuh"
#include "cuda/kernels/signal.cuh"
#include "cuda/kernels/warp.cuh"

namespace hep {

constexpr int kFirstExtrasWarp = 2;
constexpr int kExtrasBarrier = 1;

// All warps but the loader and the storer.
__device__ inline int extras_warps() { return blockDim.x / kWarpSize - kFirstExtrasWarp; }
__device__ inline int extras_threads() { return extras_warps() * kWarpSize; }

// Calls body(place) for the padding places between the experts' blocks, shared out among all
// `workers` of the grid by expert; lanes take every 32nd place.
template <typename Body>
__device__ void for_each_padding(const DispatchArgs& args, int worker, int workers, Body body) {
  const KernelContext& context = args.context;
  const int32_t* counts = at<int32_t>(args.routing, context.routing_layout.tokens_per_expert);
  const int32_t* offsets = at<int32_t>(args.routing, context.routing_layout.expert_offsets);
  for (int e = worker; e < context.shape().num_local_experts(); e += workers)
    for (int place = offsets[e] + counts[e] + lane_index(); place < offsets[e + 1];
         place += kWarpSize)
      body(place);
}

// Which sources gave weights; waits until these, and scales, are published. All sources must have called
// dispatch alike, also those without rows for this rank. By all extras warps of a block.
__device__ inline bool wait_for_weights(const DispatchArgs& args, uint64_t epoch, uint64_t call,
                                        uint8_t* has_weights, bool* failed) {
  const KernelContext& context = args.context;
  const int thread = threadIdx.x - kFirstExtrasWarp * kWarpSize;
  if (thread == 0) *failed = false;
  ptx::barrier_sync(kExtrasBarrier, extras_threads());
  for (int source = thread; source < context.num_ranks(); source += extras_threads()) {
    const Signals* signals = context.signals_from(source);
    const WaitPoint point{hepOperationDispatch, hepPhaseRows, source, epoch};
    bool ready = wait_for(context, point, &signals->rows_ready, epoch) &&
                 agrees(context, point, &signals->dispatch_call, call);
    // With an update, weights have come by themselves, or are waited for one by one.
    if (!args.updates)
      has_weights[source] = ready && ptx::ld_relaxed_sys(&signals->has_weights) != 0;
    const bool published = has_weights[source] && !args.updates;
    if (ready && (published || ptx::ld_relaxed_sys(&signals->has_scales) != 0))
      ready = wait_for(context, {hepOperationDispatch, hepPhaseWeights, source, epoch},
                       &signals->weights_ready, epoch);
    if (!ready) *failed = true;
  }
  ptx::barrier_sync(kExtrasBarrier, extras_threads());
  return !*failed;
}

// The weight of a selection; kept for combine if the source gave it.
__device__ inline float take_weight(const DispatchArgs& args, const Row& row, uint32_t selection,
                                    int k, bool given) {
  if (!given) return 1.0f;
  const KernelContext& context = args.context;
  const float weight =
      args.updates ? take_sent_weight(args, row, k)
                   : __ldcg(at<float>(context.windows[row.source],
                                      context.window_layout.weights_at(row.token, args.top_k)) +
                            k);
  at<float>(args.routing, context.routing_layout.weights)[selection] = weight;
  return weight;
}

__device__ inline void write_row_origin(const hepDispatchArgs_t& call, int64_t place,
                                        const Row& row) {
  if (call.row_sources != nullptr) call.row_sources[place] = row.source;
  if (call.row_tokens != nullptr) call.row_tokens[place] = row.token;
}

// One entry of a flat row's [K] experts and weights.
struct FlatExtra {
  int32_t expert;
  float weight;
};

// Where the row goes that the lane has to write; kDropped if there is none: in the expert layouts the
// lane's selection has one, in flat the first lane of each row.
template <int kLayout>
__device__ int64_t place_of_lane(const DispatchArgs& args, const SelectionLanes& lanes,
                                 uint32_t index, bool in_range, bool selected,
                                 const Selection& selection) {
  if (kLayout == hepLayoutFlat)
    return in_range && lanes.index == 0 && index < args.call.capacity ? index : kDropped;
  if (!selected) return kDropped;
  return row_of_selection(kLayout, args.call.capacity,
                          at<int32_t>(args.routing, args.context.routing_layout.expert_offsets),
                          selection);
}

// What belongs to the rows from `first` on, a few at a time: a lane for each selection, and in flat
// for each of the K entries of a row, which neighbouring lanes write to neighbouring places (a lane for
// each row, writing its entries one after the other, took bandwidth from the rows).
template <int kLayout>
__device__ void write_row_extras(const DispatchArgs& args, const SelectionLanes& lanes,
                                 uint32_t first, uint32_t num_rows, const uint8_t* has_weights,
                                 FlatExtra* entries) {
  const hepDispatchArgs_t& call = args.call;
  const uint32_t index = first + lanes.group;
  const bool in_range = lanes.group < lanes.groups && index < num_rows;
  uint4 raw = make_uint4(0, 0, 0, 0);
  if (in_range) raw = at<uint4>(args.routing, args.context.routing_layout.rows)[index];
  const Row& row = reinterpret_cast<const Row&>(raw);
  const bool selected = in_range && lanes.index < row.count;

  Selection selection{0, 0, 0};
  float weight = 0.0f;
  if (selected) {
    const uint32_t number = row.first + lanes.index;
    selection = at<Selection>(args.routing, args.context.routing_layout.selections)[number];
    weight = take_weight(args, row, number, selection.k, has_weights[row.source]);
  }
  const int64_t place = place_of_lane<kLayout>(args, lanes, index, in_range, selected, selection);
  if (call.row_scales != nullptr) {
    const char* scales = in_range ? at<char>(args.context.windows[row.source],
                                             args.context.window_layout.scales_at(row.token))
                                  : nullptr;
    forward_scales(args, lanes, scales, place, kLayout == hepLayoutFlat ? 1 : args.top_k);
  }
  if (place != kDropped) write_row_origin(call, place, row);
  if (kLayout != hepLayoutFlat) {
    if (place != kDropped && call.row_weights != nullptr) call.row_weights[place] = weight;
    return;
  }
  const bool kept = index < call.capacity;
  if (selected && selection.place < call.gather_capacity)
    call.gather[selection.place] = kept ? static_cast<int32_t>(index) : -1;
  if (call.row_experts == nullptr && call.row_weights == nullptr) return;
  entries[lane_index()] = {-1, 0.0f};
  __syncwarp();
  if (selected) entries[lanes.group * args.top_k + selection.k] = {selection.expert, weight};
  __syncwarp();
  const FlatExtra entry = entries[lane_index()];
  __syncwarp();
  if (!in_range || !kept) return;
  const int64_t number = static_cast<int64_t>(first) * args.top_k + lane_index();
  if (call.row_experts != nullptr) call.row_experts[number] = entry.expert;
  if (call.row_weights != nullptr) call.row_weights[number] = entry.weight;
}

template <int kLayout>
__device__ void write_padding_extras(const DispatchArgs& args, int worker, int workers) {
  const hepDispatchArgs_t& call = args.call;
  if (kLayout == hepLayoutExpertPadded) return;
  for_each_padding(args, worker, workers, [&](int place) {
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

template <int kLayout>
__device__ void write_extras(const DispatchArgs& args, uint64_t epoch, uint64_t call,
                             uint8_t* has_weights, FlatExtra* entries, bool* failed) {
  const KernelContext& context = args.context;
  if (!wait_for_weights(args, epoch, call, has_weights, failed)) return;
  const SelectionLanes lanes(args.top_k);
  const int warp = warp_index() - kFirstExtrasWarp;
  const uint32_t num_rows =
      at<uint32_t>(args.routing, context.routing_layout.source_rows)[context.num_ranks()];
  for (uint32_t first = (blockIdx.x * extras_warps() + warp) * lanes.groups; first < num_rows;
       first += gridDim.x * extras_warps() * lanes.groups)
    write_row_extras<kLayout>(args, lanes, first, num_rows, has_weights,
                              entries + warp * kWarpSize);
  write_padding_extras<kLayout>(args, warp * gridDim.x + blockIdx.x, gridDim.x * extras_warps());
}

}  // namespace hep
