// SPDX-License-Identifier: Apache-2.0
// Dispatch: receivers pull. A loader warp brings rows from the sources' windows into a ring of stages,
// a storer warp writes each to its place or places; meanwhile the other warps write what goes with the
// rows (dispatch_extras.cuh). No staging on the receiver, no registration of outputs.
#include <algorithm>

#include "call_summary.h"
#include "cuda/kernels/dispatch_extras.cuh"
#include "cuda/kernels/launch.h"
#include "cuda/kernels/pipeline.cuh"
#include "cuda/kernels/place_choices.cuh"
#include "cuda/kernels/quantize.cuh"
#include "cuda/kernels/signal.cuh"
#include "cuda/kernels/warp.cuh"

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

// Rows that a block takes at a time, consecutive rows of one source: as many as whole stages hold, but
// at least so many.
constexpr int kFewRowsPerGroup = 4;

// Flat rows of a source follow each other, and mostly come from tokens that follow each other: a stage
// holds several, for fewer copies. (On an H200, 14 KiB rows in four copies instead of one took a third
// longer.) So many stages must remain: on 4 H200s with 16 blocks, 5 stages of 2 rows gave 410 GB/s, 10 of
// 1 row 421.
constexpr int kStageTargetBytes = 28 * 1024;
constexpr int kMaxRowsPerStage = 16;
constexpr int kFewStages = 6;
static_assert(kMaxRowsPerStage + kFewRowsPerGroup <= kWarpSize);

// Stores that a storer has in flight before it hands the oldest one's stage back.
constexpr int kStoresInFlight = 4;

struct RowItem {
  uint32_t row;       // the first flat row, or kEnd
  uint32_t num_rows;  // in the expert layouts 1
  uint32_t first;     // of its selections
  uint32_t count;
};
constexpr uint32_t kEnd = 0xffffffffu;

// In the expert layouts a stage holds the row's selections, too, whose list the copy engine brings along;
// it may begin 8 bytes off a 16-byte boundary.
__device__ __host__ constexpr int selection_bytes(int layout, int top_k) {
  return layout != hepLayoutFlat ? static_cast<int>(align_up((top_k + 1) * sizeof(Selection), 16))
                                 : 0;
}

__device__ __host__ constexpr int stage_bytes(int layout, int rows, int row_bytes, int top_k) {
  return align_up(rows * row_bytes + selection_bytes(layout, top_k), kStageAlignment);
}

// One by one if there would be too few groups for all blocks.
__device__ inline int rows_per_group(const DispatchArgs& args, uint32_t num_rows) {
  if (num_rows < 2 * kFewRowsPerGroup * gridDim.x) return args.rows_per_stage;
  return args.rows_per_stage * ceil_div(kFewRowsPerGroup, args.rows_per_stage);
}

// Groups of rows in the order in which they are visited: the rows in a block's ring come from all
// sources in turn, and at any time all blocks of all GPUs read from all sources alike. So no source is
// everybody's target, and no block waits for a slow one while others pile up behind it.
struct GroupOrder {
  int rank, num_ranks;
  int rows;  // of a group

  __device__ int turn(int group) const { return group / num_ranks; }
  __device__ int source(int group) const {
    const int step = turn(group) * num_ranks / gridDim.x;
    return (rank + 1 + group % num_ranks + step) % num_ranks;
  }
};

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

// ------------------------------------------------------------------------------------ publishing

// The rows lie in the window already; weights and scales follow.
__device__ void signal_rows(const DispatchArgs& args, uint64_t epoch, uint64_t call) {
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
__device__ void publish_weights(const DispatchArgs& args) {
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
__device__ bool wait_for_readers(const DispatchArgs& args, uint64_t epoch) {
  const KernelContext& context = args.context;
  if (context.mode != hepModeLowLatency) return true;
  bool free = true;
  for (int rank = threadIdx.x; rank < context.num_ranks(); rank += blockDim.x)
    free &= wait_for(context, {hepOperationDispatch, hepPhaseReaders, rank, epoch},
                     &context.signals_from(rank)->rows_read, epoch - 1);
  return __syncthreads_and(free);
}

// By all blocks.
__device__ void publish_rows(const DispatchArgs& args) {
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
__device__ bool publish_early(const DispatchArgs& args, uint64_t epoch, uint64_t call) {
  if (args.publishing != Publishing::kDone || blockIdx.x != gridDim.x - 1) return true;
  if (!wait_for_readers(args, epoch)) return false;
  signal_rows(args, epoch, call);
  return true;
}

// All blocks bring the rest of what the peers read to the window; the last to come signals. False as
// wait_until().
__device__ bool publish(const DispatchArgs& args, uint64_t epoch, uint64_t call) {
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

// ------------------------------------------------------------------------------------ moving rows

// Where the rows of each source lie; waits for them when they are first needed.
struct SourceGate {
  const DispatchArgs& args;
  uint64_t epoch, call;
  const char** published;  // [R] in shared memory, NULL at first; read by lane 0 alone

  // By one warp, for another to come: a source for each lane.
  __device__ void look_for_all() const {
    for (int source = lane_index(); source < args.context.num_ranks(); source += kWarpSize)
      wait_for_rows(source);
  }

  // By all lanes of a warp; NULL after a failure.
  __device__ const char* rows_of(int source) const {
    uint64_t rows = lane_index() == 0 ? reinterpret_cast<uint64_t>(published[source]) : 0;
    rows = __shfl_sync(kFullWarp, rows, 0);
    if (rows != 0) return reinterpret_cast<const char*>(rows);
    if (lane_index() == 0) rows = reinterpret_cast<uint64_t>(wait_for_rows(source));
    return reinterpret_cast<const char*>(__shfl_sync(kFullWarp, rows, 0));
  }

 private:
  __device__ const char* wait_for_rows(int source) const {
    const KernelContext& context = args.context;
    const Signals* signals = context.signals_from(source);
    const WaitPoint point{hepOperationDispatch, hepPhaseRows, source, epoch};
    if (!wait_for(context, point, &signals->rows_ready, epoch) ||
        !agrees(context, point, &signals->dispatch_call, call))
      return nullptr;
    // The copy engine reads what the source wrote by other means.
    ptx::fence_proxy_async();
    published[source] = context.published_at(source, ptx::ld_relaxed_sys(&signals->rows_offset));
    return published[source];
  }
};

// By one lane.
__device__ inline void load_expert_row(const DispatchArgs& args, const Row& row, uint32_t index,
                                       const char* source_rows, Producer<RowItem>& producer) {
  const int row_bytes = args.row_bytes;
  // 16-byte copies of 8-byte selections: from the even one at or before the first.
  const uint32_t first_even = row.first & ~1u;
  const uint32_t list_bytes =
      align_up((row.first + row.count - first_even) * sizeof(Selection), 16);
  producer.acquire({index, 1, row.first, row.count}, row_bytes + list_bytes);
  producer.load(0, source_rows + static_cast<uint64_t>(row.token) * row_bytes, row_bytes);
  producer.load(row_bytes,
                at<Selection>(args.routing, args.context.routing_layout.selections) + first_even,
                list_bytes);
  producer.advance();
}

// Rows that are moved one after the other: one record a lane, handed round by shuffles.
struct RowGroup {
  int source;
  uint32_t begin, end;  // none: begin >= end
  uint4 record;         // of the lane's row

  __device__ uint32_t token(uint32_t index) const {
    return __shfl_sync(kFullWarp, record.x, index - begin);
  }
  __device__ Row row(uint32_t index) const {
    uint4 raw;
    raw.x = __shfl_sync(kFullWarp, record.x, index - begin);
    raw.y = __shfl_sync(kFullWarp, record.y, index - begin);
    raw.z = __shfl_sync(kFullWarp, record.z, index - begin);
    raw.w = __shfl_sync(kFullWarp, record.w, index - begin);
    return reinterpret_cast<const Row&>(raw);
  }
};

__device__ RowGroup find_group(const DispatchArgs& args, const GroupOrder& order,
                               const uint32_t* source_rows, int group) {
  const int source = order.source(group);
  const int rows = order.rows;
  RowGroup found{source, source_rows[source] + order.turn(group) * rows, source_rows[source + 1],
                 make_uint4(0, 0, 0, 0)};
  found.end = min(found.begin + rows, found.end);
  if (found.begin + lane_index() < found.end)
    found.record =
        at<uint4>(args.routing, args.context.routing_layout.rows)[found.begin + lane_index()];
  return found;
}

// By one lane.
__device__ inline void load_flat_row(const DispatchArgs& args, uint32_t token, uint32_t index,
                                     const char* source_rows, Producer<RowItem>& producer) {
  const int row_bytes = args.row_bytes;
  producer.acquire({index, 1, 0, 0}, row_bytes);
  producer.load(0, source_rows + static_cast<uint64_t>(token) * row_bytes, row_bytes);
  producer.advance();
}

// Rows of one group from `begin` on into one stage; those of tokens that follow each other by one copy.
// By all lanes.
__device__ inline void load_flat_rows(const DispatchArgs& args, const RowGroup& group,
                                      uint32_t begin, uint32_t count, const char* source_rows,
                                      Producer<RowItem>& producer) {
  const int row_bytes = args.row_bytes;
  if (lane_index() == 0) producer.acquire({begin, count, 0, 0}, count * row_bytes);
  for (uint32_t done = 0; done < count;) {
    const uint32_t token = group.token(begin + done);
    uint32_t run = 1;
    while (done + run < count && group.token(begin + done + run) == token + run) ++run;
    if (lane_index() == 0)
      producer.load(done * row_bytes, source_rows + static_cast<uint64_t>(token) * row_bytes,
                    run * row_bytes);
    done += run;
  }
  if (lane_index() == 0) producer.advance();
}

// Rows that are dropped need no load; in the expert layouts any of a row's places may be in range.
template <int kLayout>
__device__ void load_group(const DispatchArgs& args, const RowGroup& group, const char* source_rows,
                           Producer<RowItem>& producer) {
  if (kLayout != hepLayoutFlat) {
    for (uint32_t index = group.begin; index < group.end; ++index) {
      const Row row = group.row(index);
      if (lane_index() == 0) load_expert_row(args, row, index, source_rows, producer);
    }
    return;
  }
  const int64_t end = min(int64_t{group.end}, args.call.capacity);
  if (args.rows_per_stage == 1) {
    for (int64_t index = group.begin; index < end; ++index) {
      const uint32_t token = group.token(index);
      if (lane_index() == 0) load_flat_row(args, token, index, source_rows, producer);
    }
    return;
  }
  for (int64_t index = group.begin; index < end; index += args.rows_per_stage)
    load_flat_rows(args, group, index, min(int64_t{args.rows_per_stage}, end - index), source_rows,
                   producer);
}

// The records of the next group are read while the rows of this one are loaded.
template <int kLayout>
__device__ void load_rows(const DispatchArgs& args, const SourceGate& gate,
                          const uint32_t* source_rows, const Ring<RowItem>& ring) {
  const KernelContext& context = args.context;
  const GroupOrder order{context.rank, context.num_ranks(),
                         rows_per_group(args, source_rows[context.num_ranks()])};
  Producer<RowItem> producer{ring, {}};

  uint32_t longest = 0;
  for (int source = 0; source < context.num_ranks(); ++source)
    longest = max(longest, source_rows[source + 1] - source_rows[source]);
  const int num_groups =
      args.call.capacity > 0 ? ceil_div(longest, order.rows) * context.num_ranks() : 0;

  RowGroup next{};
  if (blockIdx.x < num_groups) next = find_group(args, order, source_rows, blockIdx.x);
  for (int group = blockIdx.x; group < num_groups; group += gridDim.x) {
    const RowGroup current = next;
    if (group + gridDim.x < num_groups)
      next = find_group(args, order, source_rows, group + gridDim.x);
    if (current.begin >= current.end) continue;
    const char* rows = gate.rows_of(current.source);
    if (rows == nullptr) break;
    load_group<kLayout>(args, current, rows, producer);
  }
  if (lane_index() == 0) producer.acquire({kEnd, 0, 0, 0}, 0);
}

// Where the lane's copy of the stage's rows goes; NULL if there is none.
template <int kLayout>
__device__ char* destination(const DispatchArgs& args, const RowItem& item, const char* stage) {
  int64_t place = item.row < args.call.capacity ? item.row : kDropped;
  if (kLayout != hepLayoutFlat) {
    if (lane_index() >= item.count) return nullptr;
    const Selection* list = reinterpret_cast<const Selection*>(stage + args.row_bytes);
    place = row_of_selection(kLayout, args.call.capacity,
                             at<int32_t>(args.routing, args.context.routing_layout.expert_offsets),
                             list[(item.first & 1) + lane_index()]);
  } else if (lane_index() != 0) {
    return nullptr;
  }
  if (place == kDropped) return nullptr;
  return static_cast<char*>(args.call.rows) + place * args.row_bytes;
}

// One lane stores to each place.
template <int kLayout, int kInFlight>
__device__ void store_rows(const DispatchArgs& args, const Ring<RowItem>& ring) {
  DelayedRelease<kInFlight> release;
  for (Cursor cursor;; cursor.advance(ring.depth)) {
    wait_phase(&ring.full[cursor.stage], cursor.parity);
    const RowItem item = ring.items[cursor.stage];
    if (item.row == kEnd) break;
    const char* stage = ring.stage(cursor.stage);
    char* place = destination<kLayout>(args, item, stage);
    if (place != nullptr) ptx::bulk_store(place, stage, item.num_rows * args.row_bytes);
    ptx::bulk_commit();
    release.stored(ring);
  }
  ptx::bulk_wait<0>();
  __syncwarp();
}

// The storer zeroes the padding rows from a stage that is no longer used.
__device__ void zero_padding(const DispatchArgs& args, const Ring<RowItem>& ring) {
  const int row_bytes = args.row_bytes;
  uint4* zeros = reinterpret_cast<uint4*>(ring.stage(0));
  for (int i = lane_index(); i < row_bytes / static_cast<int>(sizeof(uint4)); i += kWarpSize)
    zeros[i] = make_uint4(0, 0, 0, 0);
  ptx::fence_proxy_async_shared();
  __syncwarp();
  for_each_padding(args, blockIdx.x, gridDim.x, [&](int place) {
    if (place < args.call.capacity)
      ptx::bulk_store(static_cast<char*>(args.call.rows) + static_cast<int64_t>(place) * row_bytes,
                      zeros, row_bytes);
  });
  ptx::bulk_commit();
  ptx::bulk_wait<0>();
}

// ------------------------------------------------------------------------------------- finishing

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
