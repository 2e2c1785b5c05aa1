// SPDX-License-Identifier: Apache-2.0
// Routing update and dispatch in one launch. All ranks send each other their tokens' experts; every
// block finds out by itself where its share of all tokens goes, and moves their rows. So no block
// waits for what another has found out: on an H200 that takes two microseconds each time. A loader
// warp fetches the rows while the placing warps still count.
#include "backend/cuda/kernels/common/executed_update.cuh"
#include "backend/cuda/kernels/common/grid.cuh"
#include "backend/cuda/kernels/common/report.cuh"
#include "backend/cuda/kernels/common/routing_view.cuh"
#include "backend/cuda/kernels/common/wait.cuh"
#include "backend/cuda/kernels/dispatch/counts.cuh"
#include "backend/cuda/kernels/dispatch/extras.cuh"
#include "backend/cuda/kernels/dispatch/rows.cuh"
#include "backend/cuda/kernels/fused/assign.cuh"
#include "backend/cuda/kernels/fused/exchange.cuh"
#include "backend/cuda/kernels/fused/own_tokens.cuh"
#include "backend/cuda/launch.h"
#include "protocol/at.h"
#include "protocol/choices.h"
#include "protocol/output_layout.h"
#include "protocol/records.h"
#include "protocol/shape.h"

namespace hep::fused {

using dispatch::FlatExtra;
using dispatch::RowItem;

namespace {

// The storer waits here until the records are made.
constexpr int kRecordsBarrier = 2;
constexpr int kRecordsThreads = kAssigningThreads + kWarpSize;

// The rows of the block's tokens, in order: where each goes is not known yet.
__device__ void load_rows(const BlockUpdate& block, const Ring<RowItem>& ring) {
  const UpdateArgs& args = block.args;
  const Sources& sources = block.sources;
  const KernelContext& context = args.context;
  const Shape& shape = context.shape();
  const uint32_t local_base = context.rank * shape.num_local_experts();
  WarpProducer<RowItem> producer{ring, {}};
  for (uint32_t first = block.share.begin; first < block.share.end; first += kWarpSize) {
    const uint32_t number = first + warp_lane();
    bool selected = false, ready = true;
    const char *row = nullptr, *scales = nullptr;
    if (number < block.share.end) {
      const int source = source_of(sources, shape.num_ranks, number);
      const uint32_t token = number - sources.first_token[source];
      const uint16_t* experts =
          block.memory.experts + (source * shape.choice_tokens + token) * args.top_k;
#pragma unroll 4
      for (int k = 0; k < args.top_k; ++k)
        selected |= experts[k] - local_base < static_cast<uint32_t>(shape.num_local_experts());
      if (selected) ready = wait_for_token(args, sources, source, token, block.epoch, block.update);
      row = sources.rows[source] + static_cast<uint64_t>(token) * args.rows.row_bytes;
      if (args.plan.stage_scale_bytes > 0)
        scales = dispatch::published_scales(context, source, block.epoch, token);
    }
    // The copy engine reads what the source wrote by other means.
    ptx::fence_proxy_async();
    if (!__all_sync(kFullWarp, ready)) break;
    producer.load(
        __ballot_sync(kFullWarp, selected), {}, args.rows.row_bytes + args.plan.stage_scale_bytes,
        [&](char* stage, uint64_t* full) {
          ptx::bulk_load(stage, row, args.rows.row_bytes, full);
          if (args.plan.stage_scale_bytes > 0)
            ptx::bulk_load(stage + args.rows.row_bytes, scales, args.plan.stage_scale_bytes, full);
        });
  }
  producer.load(1, {dispatch::kEnd, 0, 0, 0}, nullptr, 0);
}

// Rows of the block whose records the storer holds, one a lane.
struct HeldRecords {
  uint32_t first, end;  // end: of the block's rows
  uint4 record;

  __device__ HeldRecords(const UpdateArgs& args, uint32_t first_row, uint32_t end_row)
      : first(first_row), end(end_row), record(make_uint4(0, 0, 0, 0)) {
    if (first + warp_lane() < end) record = routing_of(args).row_words()[first + warp_lane()];
  }
};

// The selections of a row. By all lanes.
struct RowSelections {
  const Selection* list;
  uint32_t count;

  __device__ RowSelections(const UpdateArgs& args, const HeldRecords& records, uint32_t row) {
    const int lane = row - records.first;
    list = routing_of(args).selections() + __shfl_sync(kFullWarp, records.record.y, lane);
    count = __shfl_sync(kFullWarp, records.record.z, lane) & 0xffff;
  }
};

// One lane stores to each place.
template <int kLayout, int kInFlight>
__device__ void store_rows(const UpdateArgs& args, const ExpertBlocks& experts,
                           const BlockRows& rows, const Ring<RowItem>& ring) {
  DelayedRelease<kInFlight> release;
  HeldRecords records(args, rows.begin, kLayout == hepLayoutFlat ? rows.begin : rows.end);
  uint32_t row = rows.begin;
  for (Cursor cursor;; cursor.advance(ring.depth), ++row) {
    wait_phase(&ring.full[cursor.stage], cursor.parity);
    if (ring.items[cursor.stage].row == dispatch::kEnd) break;
    if (kLayout != hepLayoutFlat && row == records.first + kWarpSize)
      records = HeldRecords(args, row, rows.end);
    const RowSelections selections(args, records, kLayout == hepLayoutFlat ? rows.begin : row);
    const char* stage = ring.stage(cursor.stage);
    const int64_t place =
        dispatch::place_of_copy<kLayout>(args, experts, row, selections.list, selections.count);
    if (place != kDropped) {
      ptx::bulk_store(dispatch::row_at(args, place), stage, args.rows.row_bytes);
      if (args.plan.stage_scale_bytes > 0)
        ptx::bulk_store(
            static_cast<char*>(args.call.row_scales) + place * args.plan.stage_scale_bytes,
            stage + args.rows.row_bytes, args.plan.stage_scale_bytes);
    }
    ptx::bulk_commit();
    release.stored(ring);
  }
  ptx::bulk_wait<0>();
  __syncwarp();
}

template <int kLayout>
__device__ void store_rows(const UpdateArgs& args, const ExpertBlocks& experts,
                           const BlockRows& rows, const Ring<RowItem>& ring) {
  if (ring.depth > 2 * dispatch::kStoresInFlight)
    store_rows<kLayout, dispatch::kStoresInFlight>(args, experts, rows, ring);
  else
    store_rows<kLayout, 1>(args, experts, rows, ring);
  if (kLayout == hepLayoutExpertMajor) dispatch::zero_padding(args, experts, {0, 1}, ring);
}

// What the sources have sent beside their rows, or published.
struct SentExtras {
  const UpdateArgs& args;
  const Sources& sources;
  uint64_t epoch, update;

  __device__ bool has_weights(int source) const { return sources.flags[source] & kGivesWeights; }

  // 0 after a failure.
  __device__ float weight(const Row& row, int k) const {
    if (!has_weights(row.source)) return 1.0f;
    const KernelContext& context = args.context;
    const uint64_t* words =
        ChoiceWords(context, context.rank, row.source, update)
            .weights(context.shape(), sources.num_tokens[row.source], args.top_k);
    uint32_t weight = 0;
    take_word(context, {hepOperationDispatch, hepPhaseWeights, row.source, epoch},
              words + row.token * args.top_k + k, update, &weight);
    return __uint_as_float(weight);
  }

  __device__ bool forwards_scales() const { return args.plan.stage_scale_bytes == 0; }

  // Waits for them; they are of no use after a failure.
  __device__ const char* scales(const Row& row) const {
    wait_for_token(args, sources, row.source, row.token, epoch, update);
    return dispatch::published_scales(args.context, row.source, epoch, row.token);
  }
};

// A placing warp's tokens: records, then what goes with their rows.
template <int kLayout>
__device__ void assign_tokens(const BlockUpdate& block, FlatExtra* entries) {
  const UpdateArgs& args = block.args;
  const SelectionWarpLanes& lanes = block.lanes;
  const TokenRange tokens = block.share.of_warp(warp_index());
  const AssignCounters next = block.memory.of_class(1 + warp_index(), args.context.shape());
  const uint32_t first_row = *next.rows;
  __syncwarp();
  for (int first = tokens.begin; first < tokens.end; first += lanes.groups)
    make_records(block, first, tokens.end, next);
  ptx::barrier_arrive(kRecordsBarrier, kRecordsThreads);

  const uint32_t end_row = *next.rows;
  const ExpertBlocks experts = block.memory.expert_blocks();
  const SentExtras sent{args, block.sources, block.epoch, block.update};
  const dispatch::RowExtras<kLayout, SentExtras> extras{args, sent, experts, lanes,
                                                        entries + warp_index() * kWarpSize};
  for (uint32_t row = first_row; row < end_row; row += lanes.groups) extras.write(row, end_row);
  dispatch::write_padding_extras<kLayout>(args, experts, warp_index() * gridDim.x + blockIdx.x,
                                          gridDim.x * kAssigningWarps);
}

// By one warp of one block.
template <int kLayout>
__device__ void write_totals(const BlockUpdate& block) {
  const KernelContext& context = block.args.context;
  uint32_t num_rows = 0;
  for (int source = 0; source < context.num_ranks(); ++source)
    num_rows += block.memory.source_rows[source];
  dispatch::write_counts<kLayout>(block.args, block.memory.expert_blocks(), num_rows, block.epoch);
  if (warp_lane() == 0) note_update(block.args, block.update);
}

// By one thread of each block, when all of the block have read the epochs.
__device__ void advance_epochs(const UpdateArgs& args, uint64_t epoch, uint64_t update) {
  DeviceState* state = args.context.state;
  if (!is_last_to_begin(&state->dispatch.begun)) return;
  state->dispatch.epoch = epoch;
  state->routing_epoch = update;
  state->most_selections[(update + 1) & 1] = 0;
}

// Where rows are read in place, their owners wait until all have read them. By all threads of all
// blocks, which agree on whether there are any.
__device__ void release_sources(const UpdateArgs& args, const Sources& sources, uint64_t epoch) {
  const KernelContext& context = args.context;
  if (!any_in_place(sources, context.num_ranks())) return;
  if (!is_last_to_arrive(&context.state->dispatch.arrivals) || has_failed(context)) return;
  for (int rank = threadIdx.x; rank < context.num_ranks(); rank += blockDim.x) {
    ptx::st_release_sys(&context.signals_to(rank)->rows_read, epoch);
    if (sources.flags[context.rank] & kInPlace)
      wait_for(context, {hepOperationDispatch, hepPhaseReaders, rank, epoch},
               &context.signals_from(rank)->rows_read, epoch);
  }
}

template <int kLayout, typename Index>
__global__ void __launch_bounds__(kThreads, 1)
    update_and_dispatch_kernel(const __grid_constant__ UpdateArgs args) {
  extern __shared__ __align__(kStageAlignment) char shared[];
  __shared__ Sources sources;
  __shared__ BlockRows rows;
  __shared__ FlatExtra extra_entries[kAssigningThreads];
  const KernelContext& context = args.context;
  const Shape& shape = context.shape();
  const uint64_t epoch = context.state->dispatch.epoch + 1;
  const uint64_t update = context.state->routing_epoch + 1;
  const SelectionPair<Index> first_pair(args, blockIdx.x * blockDim.x + threadIdx.x);
  if (threadIdx.x == 0) sources.max_selections = 0;
  if (__syncthreads_or(has_failed(context))) return;

  if (args.step != Step::kReceive) {
    send_choices(args, first_pair, epoch, update);
    const TokenRange tokens = dispatch::tokens_to_publish(args);
    if (args.call.scales != nullptr) dispatch::publish_scales(args, epoch, tokens, all_threads());
    if (args.rows.publishing != Publishing::kDone)
      dispatch::publish_rows(args, epoch, tokens, all_threads());
    __syncthreads();
    if (warp_index() == kStorerWarp) signal_tokens(args, update, tokens);
  }
  if (args.step == Step::kSend) return;
  if (threadIdx.x == kLoaderWarp * kWarpSize) advance_epochs(args, epoch, update);

  // What the peers wait for has been sent. (All this beforehand, while the epochs are on their way,
  // and the choices asked for before their header is here: one token took 12.7 us on 2 H200s
  // instead of 12.4.)
  const AssignMemory memory(shared, shape);
  memory.clear_counters(shape);
  const int bytes = stage_bytes(args.rows.row_bytes, args.plan.stage_scale_bytes);
  char* stages = shared + assign_bytes(shape);
  const Ring<RowItem> ring(stages, stages + args.plan.stages * bytes, args.plan.stages, bytes);
  if (warp_index() >= kAssigningWarps)
    ring.initialize(kArrivingWarpLanes, {warp_index() - kAssigningWarps, kOtherWarps});
  const SelectionWarpLanes lanes(args.top_k);
  const RankOfExpert rank_of(shape);
  const bool here =
      warp_index() >= kAssigningWarps || take_choices(args, epoch, update, sources, memory.experts);
  if (!__syncthreads_and(here)) return;
  exclusive_scan_tokens(sources, shape.num_ranks);
  __syncthreads();

  const TokenShare share(sources.first_token[shape.num_ranks]);
  const BlockUpdate block{args, memory, sources, share, lanes, rank_of, epoch, update};
  switch (warp_index()) {
    case kLoaderWarp: load_rows(block, ring); break;
    case kStorerWarp:
      ptx::barrier_sync(kRecordsBarrier, kRecordsThreads);
      store_rows<kLayout>(args, memory.expert_blocks(), rows, ring);
      break;
    case kOwnTokensWarp: assign_own_tokens(args, memory, rank_of); break;
    default:
      assign_choices(block, &rows);
      assign_tokens<kLayout>(block, extra_entries);
      if (blockIdx.x == gridDim.x - 1 && warp_index() == 0) write_totals<kLayout>(block);
  }
  release_sources(args, sources, epoch);
}

constexpr KernelTable<UpdateArgs, 6> kKernels{
    {{{hepLayoutFlat, hepIndexInt32}, update_and_dispatch_kernel<hepLayoutFlat, int32_t>},
     {{hepLayoutFlat, hepIndexInt64}, update_and_dispatch_kernel<hepLayoutFlat, int64_t>},
     {{hepLayoutExpertMajor, hepIndexInt32},
      update_and_dispatch_kernel<hepLayoutExpertMajor, int32_t>},
     {{hepLayoutExpertMajor, hepIndexInt64},
      update_and_dispatch_kernel<hepLayoutExpertMajor, int64_t>},
     {{hepLayoutExpertPadded, hepIndexInt32},
      update_and_dispatch_kernel<hepLayoutExpertPadded, int32_t>},
     {{hepLayoutExpertPadded, hepIndexInt64},
      update_and_dispatch_kernel<hepLayoutExpertPadded, int64_t>}},
    kMaxDynamicBytes};
static_assert(kKernels.serves_all_layouts({kAny, hepIndexInt32}) &&
              kKernels.serves_all_layouts({kAny, hepIndexInt64}));

}  // namespace

cudaError_t prepare_update_and_dispatch() { return kKernels.prepare(); }

cudaError_t launch_update_and_dispatch(UpdateArgs args, int32_t index_type, const Plan& plan,
                                       cudaStream_t stream) {
  const Grid grid = plan_update_and_dispatch(plan, &args);
  return kKernels.launch({args.call.layout, index_type}, grid, stream, args);
}

}  // namespace hep::fused
