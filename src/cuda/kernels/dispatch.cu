// SPDX-License-Identifier: Apache-2.0
// Dispatch: receivers pull. A loader warp brings rows from the sources' windows into a ring of stages,
// a storer warp writes each to its place or places; meanwhile the other warps write what goes with the
// rows (dispatch_extras.cuh). No staging on the receiver, no registration of outputs.
#include <algorithm>

#include "call_summary.h"
#include "cuda/kernels/dispatch_extras.cuh"
#include "cuda/kernels/dispatch_publish.cuh"
#include "cuda/kernels/dispatch_rows.cuh"
#include "cuda/kernels/launch.h"
#include "cuda/kernels/place_choices.cuh"

namespace hep {
namespace {

constexpr int kLoaderWarp = 0;
constexpr int kStorerWarp = 1;

// To count the choices of all ranks takes more warps than to write what goes with rows.
template <bool kUpdates>
constexpr int kExtrasWarps = kUpdates ? kPlacingWarps - kFirstExtrasWarp : 6;
template <bool kUpdates>
constexpr int kThreads = (kFirstExtrasWarp + kExtrasWarps<kUpdates>)*kWarpSize;
constexpr int kUpdatingExtraBytes = 3072;  // of static shared memory
static_assert(kMaxPlaceBytes <= kMaxDynamicSharedBytes - kUpdatingExtraBytes);

__device__ uint64_t current_epoch(const DispatchArgs& args) {
  return args.context.state->dispatch.epoch + 1;
}

// The update of the routing: one that this dispatch does is counted when it ends.
__device__ uint64_t update_of(const DispatchArgs& args) {
  const KernelContext& context = args.context;
  return args.updates ? context.state->routing_epoch + 1
                      : at<RoutingTotals>(args.routing, context.routing_layout.totals)->update;
}

__device__ uint64_t call_summary(const DispatchArgs& args) {
  return summary_of(args.call, update_of(args));
}

// By all threads of a block.
__device__ void write_expert_rows(const DispatchArgs& args) {
  if (args.call.expert_rows == nullptr) return;
  const KernelContext& context = args.context;
  const int32_t* counts = at<int32_t>(args.routing, context.routing_layout.tokens_per_expert);
  for (int e = threadIdx.x; e < context.shape().num_local_experts(); e += blockDim.x)
    args.call.expert_rows[e] =
        static_cast<int32_t>(min(static_cast<int64_t>(counts[e]), args.call.capacity));
}

// The capacity that takes all rows. By one warp.
template <int kLayout>
__device__ int64_t needed_rows(const DispatchArgs& args) {
  const RoutingLayout& layout = args.context.routing_layout;
  const int local_experts = args.context.shape().num_local_experts();
  if (kLayout == hepLayoutFlat)
    return at<RoutingTotals>(args.routing, layout.totals)->num_flat_rows;
  if (kLayout == hepLayoutExpertMajor)
    return at<int32_t>(args.routing, layout.expert_offsets)[local_experts];
  const int32_t* counts = at<int32_t>(args.routing, layout.tokens_per_expert);
  uint32_t most = 0;
  for (int e = lane_index(); e < local_experts; e += kWarpSize)
    most = max(most, static_cast<uint32_t>(counts[e]));
  return __reduce_max_sync(kFullWarp, most);
}

// The first is kept.
__device__ void report_overflow(const DispatchArgs& args, uint64_t epoch, int64_t needed) {
  if (atomicCAS(&args.context.firsts->overflow, 0u, 1u) != 0) return;
  volatile HostState* host = args.context.host;
  host->overflow_mode = args.context.mode;
  host->overflow_lane = args.context.lane;
  host->overflow_number = epoch;
  host->overflow_needed = needed;
  host->overflow_capacity = args.call.capacity;
  __threadfence_system();
  host->overflow_ready = 1;
}

// In the last block: the rows are read and written. Waits until the peers have read this rank's rows where
// others may overwrite them.
template <int kLayout>
__device__ void finish(const DispatchArgs& args, uint64_t epoch) {
  const KernelContext& context = args.context;
  for (int rank = threadIdx.x; rank < context.num_ranks(); rank += blockDim.x) {
    ptx::st_release_sys(&context.signals_to(rank)->rows_read, epoch);
    // Before it copies tokens to the window, a dispatch waits by itself.
    if (args.publishing == Publishing::kDone)
      wait_for(context, {hepOperationDispatch, hepPhaseReaders, rank, epoch},
               &context.signals_from(rank)->rows_read, epoch);
  }
  write_expert_rows(args);
  if (warp_index() != 0) return;
  const int64_t needed = needed_rows<kLayout>(args);
  if (lane_index() != 0) return;
  RoutingTotals* totals = at<RoutingTotals>(args.routing, context.routing_layout.totals);
  totals->row_counters.needed = needed;
  totals->row_counters.written = min(needed, args.call.capacity);
  totals->row_counters.overflow = needed > args.call.capacity;
  if (needed > args.call.capacity && args.call.overflow == hepOverflowError)
    report_overflow(args, epoch, needed);
  context.state->dispatch.epoch = epoch;
  if (args.updates) totals->update = ++context.state->routing_epoch;
}

template <int kLayout, bool kUpdates>
__global__ void __launch_bounds__(kThreads<kUpdates>, 1)
    dispatch_kernel(const __grid_constant__ DispatchArgs args) {
  extern __shared__ __align__(kStageAlignment) char shared[];
  __shared__ uint8_t has_weights[kMaxRanks];
  __shared__ uint32_t source_rows[kMaxRanks + 1];
  __shared__ const char* published[kMaxRanks];
  __shared__ FlatExtra extra_entries[kExtrasWarps<kUpdates> * kWarpSize];
  __shared__ bool extras_failed;
  const KernelContext& context = args.context;
  const uint64_t epoch = current_epoch(args);
  const uint64_t update = context.state->routing_epoch + 1;
  const uint64_t call = call_summary(args);
  if (__syncthreads_or(has_failed(context))) return;
  if (args.half != Half::kReceive) {
    if (!publish_early(args, epoch, call)) return;
    if (kUpdates && args.index64) send_choices<int64_t>(args, update);
    if (kUpdates && !args.index64) send_choices<int32_t>(args, update);
    if (!publish(args, epoch, call)) return;
  }
  if (args.half == Half::kSend) return;
  for (int i = threadIdx.x; i < context.num_ranks(); i += blockDim.x) published[i] = nullptr;
  const SourceGate gate{args, epoch, call, published};
  if (kUpdates) {
    if (!place_choices(args, update, shared, source_rows, has_weights)) return;
    if (warp_index() == kStorerWarp) gate.look_for_all();
    if (!wait_for_grid(context, {hepOperationRouting, hepPhaseBlocks, context.rank, update},
                       &context.state->choices_placed))
      return;
    // The copy engine reads records and rows that were written by other means.
    ptx::fence_proxy_async();
  } else {
    for (int i = threadIdx.x; i <= context.num_ranks(); i += blockDim.x)
      source_rows[i] = at<uint32_t>(args.routing, context.routing_layout.source_rows)[i];
  }
  const int bytes = stage_bytes(kLayout, args.rows_per_stage, args.row_bytes, args.top_k);
  const Ring<RowItem> ring(shared, shared + args.stages * bytes, args.stages, bytes);
  if (threadIdx.x == 0) ring.initialize(kArrivingLanes);
  __syncthreads();

  switch (warp_index()) {
    case kLoaderWarp: load_rows<kLayout>(args, gate, source_rows, ring); break;
    case kStorerWarp:
      if (ring.depth > 2 * kStoresInFlight)
        store_rows<kLayout, kStoresInFlight>(args, ring);
      else
        store_rows<kLayout, 1>(args, ring);
      if (kLayout == hepLayoutExpertMajor) zero_padding(args, ring);
      break;
    default: write_extras<kLayout>(args, epoch, call, has_weights, extra_entries, &extras_failed);
  }
  if (arrive_is_last(&context.state->dispatch.arrivals) && !has_failed(context))
    finish<kLayout>(args, epoch);
}

// By layout, without and with an update.
constexpr void (*kKernels[][2])(DispatchArgs) = {
    {dispatch_kernel<hepLayoutFlat, false>, dispatch_kernel<hepLayoutFlat, true>},
    {dispatch_kernel<hepLayoutExpertMajor, false>, dispatch_kernel<hepLayoutExpertMajor, true>},
    {dispatch_kernel<hepLayoutExpertPadded, false>, dispatch_kernel<hepLayoutExpertPadded, true>}};

int most_dynamic_bytes(bool updates) {
  return kMaxDynamicSharedBytes - (updates ? kUpdatingExtraBytes : 0);
}

}  // namespace

cudaError_t prepare_dispatch_kernels() {
  for (const auto& kernels : kKernels)
    for (const bool updates : {false, true})
      if (const cudaError_t result = prepare(kernels[updates], most_dynamic_bytes(updates));
          result != cudaSuccess)
        return result;
  return cudaSuccess;
}

cudaError_t launch_dispatch(DispatchArgs args, const Plan& plan, cudaStream_t stream) {
  const int row_bytes = args.row_bytes;
  const int rows_in_flight = dispatch_stages(plan, row_bytes, args.call.layout);
  args.rows_per_stage =
      args.call.layout != hepLayoutFlat
          ? 1
          : std::clamp(std::min(kStageTargetBytes / row_bytes, rows_in_flight / kFewStages), 1,
                       kMaxRowsPerStage);
  args.stages = rows_in_flight / args.rows_per_stage;
  const int bytes = stage_bytes(args.call.layout, args.rows_per_stage, row_bytes, args.top_k);
  const auto shared_bytes = [&] {
    return args.stages * bytes + Ring<RowItem>::control_bytes(args.stages);
  };
  while (shared_bytes() > most_dynamic_bytes(args.updates)) --args.stages;
  const int most_bytes =
      args.updates ? std::max(shared_bytes(), static_cast<int>(place_bytes(args.context.shape())))
                   : shared_bytes();
  return launch(kKernels[args.call.layout][args.updates], plan.dispatch_blocks,
                args.updates ? kThreads<true> : kThreads<false>, most_bytes, stream, args);
}

}  // namespace hep
