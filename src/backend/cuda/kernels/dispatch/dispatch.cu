// SPDX-License-Identifier: Apache-2.0
// Dispatch on a routing that is there: receivers pull. Loader warps bring rows from the sources'
// windows into rings of stages, storer warps write each to its place or places; meanwhile the other
// warps write what goes with the rows. No staging on the receiver, no registration of outputs.
#include "backend/cuda/kernels/common/grid.cuh"
#include "backend/cuda/kernels/common/report.cuh"
#include "backend/cuda/kernels/common/routing_view.cuh"
#include "backend/cuda/kernels/common/wait.cuh"
#include "backend/cuda/kernels/dispatch/counts.cuh"
#include "backend/cuda/kernels/dispatch/extras.cuh"
#include "backend/cuda/kernels/dispatch/gate.cuh"
#include "backend/cuda/kernels/dispatch/rows.cuh"
#include "backend/cuda/launch.h"
#include "protocol/at.h"
#include "protocol/routing_layout.h"
#include "protocol/shape.h"

namespace hep::dispatch {
namespace {

__device__ ExpertBlocks expert_blocks(const DispatchArgs& args) {
  return {routing_of(args).tokens_per_expert(), routing_of(args).expert_offsets()};
}

template <int kLayout>
__device__ void write_extras(const DispatchArgs& args, const PublishedExtras& published,
                             const ExpertBlocks& experts, FlatExtra* entries) {
  const SelectionWarpLanes lanes(args.top_k);
  const int warp = warp_index() - kFirstExtrasWarp;
  const uint32_t num_rows = routing_of(args).source_rows()[args.context.num_ranks()];
  const RowExtras<kLayout, PublishedExtras> extras{args, published, experts, lanes,
                                                   entries + warp * kWarpSize};
  for (uint32_t first = (blockIdx.x * kExtrasWarps + warp) * lanes.groups; first < num_rows;
       first += gridDim.x * kExtrasWarps * lanes.groups)
    extras.write(first, num_rows);
  write_padding_extras<kLayout>(args, experts, warp * gridDim.x + blockIdx.x,
                                gridDim.x * kExtrasWarps);
}

// In the last block: the rows are read and written. Waits until the peers have read this rank's
// rows where others may overwrite them.
template <int kLayout>
__device__ void finish(const DispatchArgs& args, uint64_t epoch) {
  const KernelContext& context = args.context;
  for (int rank = threadIdx.x; rank < context.num_ranks(); rank += blockDim.x) {
    ptx::st_release_sys(&context.signals_to(rank)->rows_read, epoch);
    if (args.rows.publishing == Publishing::kDone)
      wait_for(context, {hepOperationDispatch, hepPhaseReaders, rank, epoch},
               &context.signals_from(rank)->rows_read, epoch);
  }
  if (warp_index() != 0) return;
  write_counts<kLayout>(args, expert_blocks(args), executed_update(args).num_flat_rows, epoch);
  if (warp_lane() == 0) context.state->dispatch.epoch = epoch;
}

template <int kLayout>
__device__ void store_rows(const DispatchArgs& args, const ExpertBlocks& experts, Pipeline pipeline,
                           const Ring<RowItem>& ring) {
  if (ring.depth > 2 * kStoresInFlight)
    store_rows<kLayout, kStoresInFlight>(args, experts, ring);
  else
    store_rows<kLayout, 1>(args, experts, ring);
  if (kLayout == hepLayoutExpertMajor) zero_padding(args, experts, pipeline, ring);
}

template <int kLayout>
__device__ Ring<RowItem> ring_of_pipeline(const PipelineArgs& args, char* shared, int index) {
  const int bytes = stage_bytes(kLayout, args.plan.rows_per_stage, args.rows.row_bytes, args.top_k);
  char* stages = shared + index * pipeline_bytes(args.plan.stages, bytes);
  return {stages, stages + args.plan.stages * bytes, args.plan.stages, bytes};
}

template <int kLayout>
__global__ void __launch_bounds__(kThreads, 1)
    dispatch_kernel(const __grid_constant__ PipelineArgs args) {
  extern __shared__ __align__(kStageAlignment) char shared[];
  __shared__ uint8_t gave_weights[kMaxRanks];
  __shared__ uint32_t source_rows[kMaxRanks + 1];
  __shared__ const char* published_rows[kPipelines][kMaxRanks];
  __shared__ FlatExtra extra_entries[kExtrasWarps * kWarpSize];
  __shared__ bool extras_failed;
  const KernelContext& context = args.context;
  const uint64_t epoch = context.state->dispatch.epoch + 1;
  const uint64_t call = call_summary(args);
  if (!may_begin(args, hepOperationDispatch, epoch)) return;
  const bool publishes = args.step != Step::kReceive;
  if (publishes && args.rows.publishing == Publishing::kDone && blockIdx.x == gridDim.x - 1)
    signal_rows(args, epoch, call, all_threads());
  if (args.step == Step::kSend)
    return publish(args, epoch, call, all_threads(), [] { __syncthreads(); });

  for (int i = threadIdx.x; i <= context.num_ranks(); i += blockDim.x)
    source_rows[i] = routing_of(args).source_rows()[i];
  const Pipeline pipeline{warp_index() % kPipelines, args.plan.pipelines};
  for (int i = 0; i < args.plan.pipelines; ++i)
    ring_of_pipeline<kLayout>(args, shared, i)
        .initialize(kArrivingWarpLanes, {warp_index(), kThreads / kWarpSize});
  const Ring<RowItem> ring = ring_of_pipeline<kLayout>(args, shared, pipeline.index);
  const bool has_ring = pipeline.index < pipeline.count;
  const bool loads = warp_index() < kFirstStorerWarp && has_ring;
  if (loads) {
    const char** published = published_rows[pipeline.index];
    for (int i = warp_lane(); i < context.num_ranks(); i += kWarpSize) published[i] = nullptr;
  }
  __syncthreads();

  const ExpertBlocks experts = expert_blocks(args);
  if (loads) {
    load_rows<kLayout>(args, {args, epoch, call, published_rows[pipeline.index]}, source_rows,
                       pipeline, ring);
  } else if (warp_index() >= kFirstExtrasWarp) {
    if (publishes) publish(args, epoch, call, extras_threads(), sync_extras);
    const PublishedExtras published{args, epoch, gave_weights};
    if (published.wait(call, &extras_failed))
      write_extras<kLayout>(args, published, experts, extra_entries);
  } else if (has_ring) {
    store_rows<kLayout>(args, experts, pipeline, ring);
  }
  if (is_last_to_arrive(&context.state->dispatch.arrivals) && !has_failed(context))
    finish<kLayout>(args, epoch);
}

constexpr KernelTable<PipelineArgs, 3> kKernels{
    {{{hepLayoutFlat}, dispatch_kernel<hepLayoutFlat>},
     {{hepLayoutExpertMajor}, dispatch_kernel<hepLayoutExpertMajor>},
     {{hepLayoutExpertPadded}, dispatch_kernel<hepLayoutExpertPadded>}},
    kMaxDynamicBytes};
static_assert(kKernels.serves_all_layouts());

}  // namespace

cudaError_t prepare_dispatch() { return kKernels.prepare(); }

cudaError_t launch_dispatch(const DispatchArgs& dispatch, const Plan& plan, cudaStream_t stream) {
  PipelineArgs args{dispatch, {}};
  const Grid grid = plan_dispatch(plan, &args);
  return kKernels.launch({args.call.layout}, grid, stream, args);
}

}  // namespace hep::dispatch
