// SPDX-License-Identifier: Apache-2.0
// The routing update: every rank sends each peer the records of the tokens that go there, and turns
// the records that it receives into places. One launch, no host, no all-gather.
//
// A warp owns a run of consecutive tokens. It counts them; prefix sums over the warps and blocks give
// it the index of its first row and selection in every destination and expert; it then writes its
// records straight into the destinations' windows.
#include <algorithm>

#include "cuda/kernels/launch.h"
#include "cuda/kernels/signal.cuh"
#include "cuda/kernels/warp.cuh"

namespace hep {
namespace {

constexpr int kMaxThreads = 512;

// A warp turns tokens into records in groups of up to 32 tokens and this many selections.
constexpr int kGroupSelections = 256;
static_assert(kGroupSelections >= kMaxTopK);

constexpr uint16_t kNoExpert = 0xffff;
static_assert(kMaxExperts <= kNoExpert);

struct GroupBuffers {
  uint16_t experts[kGroupSelections];    // kNoExpert: no selection
  uint32_t index[kGroupSelections];      // among the source's selections of the expert
  Selection sorted[kGroupSelections];    // each token's, by (expert, k); experts are global
  Selection outgoing[kGroupSelections];  // of one destination
};

// Shared memory while sending. Counters are first counts, then the next index to give out.
struct SendMemory {
  uint32_t* totals;          // [E + R] of this rank, over all blocks: by expert, then rows by rank
  uint32_t* counters;        // [warps][E + R] by expert, then rows by rank
  uint32_t* next_selection;  // [warps][R]
  GroupBuffers* groups;      // [warps]

  __device__ SendMemory(void* shared, const Shape& shape, int warps) {
    const int entries = shape.num_experts + shape.num_ranks;
    groups = static_cast<GroupBuffers*>(shared);
    totals = reinterpret_cast<uint32_t*>(groups + warps);
    counters = totals + entries;
    next_selection = counters + warps * entries;
  }

  static size_t bytes(const Shape& shape, int warps) {
    const size_t entries = shape.num_experts + shape.num_ranks;
    return warps * sizeof(GroupBuffers) +
           sizeof(uint32_t) * (entries + warps * (entries + shape.num_ranks));
  }
};

// Shared memory while receiving.
struct ReceiveMemory {
  uint32_t* place_base;      // [EL][R] place of the first selection of an expert from a source
  uint32_t* row_base;        // [R + 1]
  uint32_t* selection_base;  // [R + 1]

  __device__ ReceiveMemory(void* shared, const Shape& shape) {
    place_base = static_cast<uint32_t*>(shared);
    row_base = place_base + shape.num_experts;
    selection_base = row_base + shape.num_ranks + 1;
  }

  static size_t bytes(const Shape& shape) {
    return sizeof(uint32_t) * (shape.num_experts + 2 * (shape.num_ranks + 1));
  }
};

struct TokenRange {
  int begin, end;
};

__device__ TokenRange tokens_of_warp(const RouteArgs& args) {
  const int warps = gridDim.x * (blockDim.x / kWarpSize);
  const int warp = blockIdx.x * (blockDim.x / kWarpSize) + warp_index();
  const int tokens = ceil_div(args.num_tokens, warps);
  return {min(warp * tokens, args.num_tokens), min((warp + 1) * tokens, args.num_tokens)};
}

// The expert of a selection, -1 for none.
template <typename Index>
__device__ int expert_at(const RouteArgs& args, int64_t selection) {
  const Index id = static_cast<const Index*>(args.indices)[selection];
  return id >= 0 && id < args.context.shape().num_experts ? static_cast<int>(id) : -1;
}

template <typename Index>
__device__ void report_bad_index(const RouteArgs& args, int64_t selection) {
  const Index id = static_cast<const Index*>(args.indices)[selection];
  if (id >= -1 && id < args.context.shape().num_experts) return;
  HostState* host = args.context.host;
  if (atomicCAS_system(&host->bad_index_set, 0u, 1u) != 0) return;
  volatile HostState* record = host;
  record->bad_index_token = selection / args.top_k;
  record->bad_index_k = selection % args.top_k;
  record->bad_index_value = id;
  __threadfence_system();
  record->bad_index_ready = 1;
}

// The ranks that a token selects.
struct RankSet {
  uint64_t words[2] = {0, 0};
  static_assert(kMaxRanks <= 128);

  __device__ void insert(int rank) { words[rank / 64] |= uint64_t{1} << (rank % 64); }
  __device__ bool contains(int rank) const { return words[rank / 64] >> (rank % 64) & 1; }
};

// Counts the warp's selections by expert and its rows by destination.
template <typename Index>
__device__ void count_tokens(const RouteArgs& args, TokenRange range, uint32_t* counters) {
  const Shape& shape = args.context.shape();
  const int local_experts = shape.num_local_experts();
  for (int i = lane_index(); i < shape.num_experts + shape.num_ranks; i += kWarpSize)
    counters[i] = 0;
  __syncwarp();

  for (int first = range.begin; first < range.end; first += kWarpSize) {
    const int token = first + lane_index();
    RankSet ranks;
    for (int k = 0; token < range.end && k < args.top_k; ++k) {
      const int64_t selection = static_cast<int64_t>(token) * args.top_k + k;
      const int expert = expert_at<Index>(args, selection);
      if (expert < 0) {
        report_bad_index<Index>(args, selection);
        continue;
      }
      atomicAdd(&counters[expert], 1u);
      ranks.insert(expert / local_experts);
    }
    for (int rank = 0; rank < shape.num_ranks; ++rank) {
      const uint32_t lanes = __ballot_sync(kFullWarp, ranks.contains(rank));
      if (lane_index() == 0) counters[shape.num_experts + rank] += __popc(lanes);
    }
  }
  __syncwarp();
}

// Makes the counters of each warp start where those of the block's warps before it end, and writes
// the block's sums to global memory.
__device__ void sum_over_warps(const RouteArgs& args, const SendMemory& memory) {
  const int entries = args.context.shape().num_experts + args.context.num_ranks();
  const int warps = blockDim.x / kWarpSize;
  for (int i = threadIdx.x; i < entries; i += blockDim.x) {
    uint32_t sum = 0;
    for (int warp = 0; warp < warps; ++warp) {
      uint32_t& counter = memory.counters[warp * entries + i];
      const uint32_t count = counter;
      counter = sum;
      sum += count;
    }
    args.context.block_counts[static_cast<size_t>(blockIdx.x) * entries + i] = sum;
  }
}

// Waits until all blocks have counted.
__device__ bool wait_for_blocks(const RouteArgs& args, uint64_t epoch) {
  uint64_t* counted = &args.context.state->routing_counted;
  bool counted_all = true;
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::fence_acq_rel_sys();
    ptx::atomic_add_acq_rel_gpu(counted, 1);
    counted_all =
        wait_for(args.context, {hepOperationRouting, hepPhaseBlocks, args.context.rank, epoch},
                 counted, epoch * gridDim.x);
  }
  return __syncthreads_and(counted_all);
}

// Adds what the blocks before this one have counted, and finds the totals.
__device__ void sum_over_blocks(const RouteArgs& args, const SendMemory& memory) {
  const int entries = args.context.shape().num_experts + args.context.num_ranks();
  const int warps = blockDim.x / kWarpSize;
  for (int i = threadIdx.x; i < entries; i += blockDim.x) {
    uint32_t before = 0, total = 0;
    for (int block = 0; block < gridDim.x; ++block) {
      const uint32_t count =
          __ldcg(args.context.block_counts + static_cast<size_t>(block) * entries + i);
      if (block < blockIdx.x) before += count;
      total += count;
    }
    for (int warp = 0; warp < warps; ++warp) memory.counters[warp * entries + i] += before;
    memory.totals[i] = total;
  }
  __syncthreads();
}

__device__ uint32_t warp_sum_of_experts(const uint32_t* by_expert, int rank, int local_experts) {
  uint32_t sum = 0;
  for (int e = lane_index(); e < local_experts; e += kWarpSize)
    sum += by_expert[rank * local_experts + e];
  return warp_sum(sum);
}

// Each destination's header and counts are sent by one warp of one block.
__device__ void send_headers(const RouteArgs& args, const SendMemory& memory, uint64_t epoch) {
  const KernelContext& context = args.context;
  const int local_experts = context.shape().num_local_experts();
  const int warps = blockDim.x / kWarpSize;
  for (int rank = warp_index() * gridDim.x + blockIdx.x; rank < context.num_ranks();
       rank += warps * gridDim.x) {
    const uint32_t selections = warp_sum_of_experts(memory.totals, rank, local_experts);
    void* window = context.windows[rank];
    if (lane_index() == 0) {
      const RecordHeader header{static_cast<uint32_t>(args.num_tokens),
                                memory.totals[context.shape().num_experts + rank], selections,
                                static_cast<uint32_t>(args.top_k)};
      *at<RecordHeader>(window, context.window_layout.header_at(epoch, context.rank)) = header;
    }
    uint32_t* counts = at<uint32_t>(window, context.window_layout.counts_at(epoch, context.rank));
    for (int e = lane_index(); e < local_experts; e += kWarpSize)
      counts[e] = memory.totals[rank * local_experts + e];
  }
}

// Reads a group of tokens and gives every selection its index among those of its expert, in
// (token, k) order.
template <typename Index>
__device__ void index_selections(const RouteArgs& args, int first_token, int num_selections,
                                 uint32_t* next_index, GroupBuffers& group) {
  for (int base = 0; base < num_selections; base += kWarpSize) {
    const int i = base + lane_index();
    const int expert =
        i < num_selections
            ? expert_at<Index>(args, static_cast<int64_t>(first_token) * args.top_k + i)
            : -1;
    const uint32_t selecting = __ballot_sync(kFullWarp, expert >= 0);
    if (expert >= 0) {
      const uint32_t same = __match_any_sync(selecting, expert);
      const uint32_t next = next_index[expert];
      const int before = __popc(same & lanes_below());
      __syncwarp(selecting);
      if (before == 0) next_index[expert] = next + __popc(same);
      group.index[i] = next + before;
    }
    if (i < num_selections) group.experts[i] = expert >= 0 ? expert : kNoExpert;
    __syncwarp();
  }
}

// Sorts each token's selections by (expert, k); those without an expert fall away.
__device__ void sort_selections(const RouteArgs& args, int num_selections, GroupBuffers& group) {
  for (int i = lane_index(); i < num_selections; i += kWarpSize) {
    const uint16_t expert = group.experts[i];
    if (expert == kNoExpert) continue;
    const int k = i % args.top_k;
    const int first = i - k;
    int rank = 0;
    for (int other = 0; other < args.top_k; ++other) {
      const uint16_t other_expert = group.experts[first + other];
      rank += other_expert < expert || (other_expert == expert && other < k);
    }
    group.sorted[first + rank] = {group.index[i], expert, static_cast<uint16_t>(k)};
  }
  __syncwarp();
}

// Writes the records of a sorted group, lane by token, into the windows of their destinations.
__device__ void send_group(const RouteArgs& args, int first_token, int num_tokens, uint64_t epoch,
                           uint32_t* next_row, uint32_t* next_selection, GroupBuffers& group) {
  const KernelContext& context = args.context;
  const int local_experts = context.shape().num_local_experts();
  const int lane = lane_index();
  const Selection* sorted = group.sorted + lane * args.top_k;
  int num_sorted = 0;
  for (int k = 0; lane < num_tokens && k < args.top_k; ++k)
    num_sorted += group.experts[lane * args.top_k + k] != kNoExpert;

  int begin = 0;
  uint16_t ordinal = 0;
  for (int rank = 0; rank < context.num_ranks(); ++rank) {
    int end = begin;
    while (end < num_sorted && sorted[end].expert < (rank + 1) * local_experts) ++end;
    const uint32_t count = end - begin;
    const uint32_t receiving = __ballot_sync(kFullWarp, count > 0);
    if (receiving == 0) continue;
    const uint32_t through = warp_inclusive_sum(count);
    const uint32_t total = __shfl_sync(kFullWarp, through, kWarpSize - 1);
    const uint32_t before = through - count;
    void* window = context.windows[rank];

    if (count > 0) {
      const Row row{static_cast<uint32_t>(first_token + lane),
                    next_selection[rank] + before,
                    static_cast<uint16_t>(count),
                    ordinal,
                    static_cast<uint16_t>(context.rank),
                    0};
      Row* rows = at<Row>(window, context.window_layout.rows_at(epoch, context.rank));
      reinterpret_cast<uint4*>(rows)[next_row[rank] + __popc(receiving & lanes_below())] =
          reinterpret_cast<const uint4&>(row);
      ++ordinal;
      for (int i = begin; i < end; ++i) {
        Selection selection = sorted[i];
        selection.expert -= rank * local_experts;
        group.outgoing[before + i - begin] = selection;
      }
    }
    __syncwarp();
    // Neighbouring lanes write neighbouring records: NVLink carries full packets.
    Selection* selections =
        at<Selection>(window, context.window_layout.selections_at(epoch, context.rank)) +
        next_selection[rank];
    for (uint32_t i = lane; i < total; i += kWarpSize)
      reinterpret_cast<uint2*>(selections)[i] = reinterpret_cast<const uint2*>(group.outgoing)[i];
    __syncwarp();
    if (lane == 0) {
      next_row[rank] += __popc(receiving);
      next_selection[rank] += total;
    }
    __syncwarp();
    begin = end;
  }
  if (lane < num_tokens)
    at<uint8_t>(args.routing, context.routing_layout.partial_counts)[first_token + lane] = ordinal;
}

template <typename Index>
__device__ void send_records(const RouteArgs& args, TokenRange range, const SendMemory& memory,
                             uint64_t epoch) {
  const Shape& shape = args.context.shape();
  const int entries = shape.num_experts + shape.num_ranks;
  uint32_t* next_index = memory.counters + warp_index() * entries;
  uint32_t* next_row = next_index + shape.num_experts;
  uint32_t* next_selection = memory.next_selection + warp_index() * shape.num_ranks;
  GroupBuffers& group = memory.groups[warp_index()];

  for (int rank = 0; rank < shape.num_ranks; ++rank) {
    const uint32_t first = warp_sum_of_experts(next_index, rank, shape.num_local_experts());
    if (lane_index() == 0) next_selection[rank] = first;
  }
  __syncwarp();

  const int group_tokens = min(kWarpSize, kGroupSelections / args.top_k);
  for (int token = range.begin; token < range.end; token += group_tokens) {
    const int num_tokens = min(group_tokens, range.end - token);
    index_selections<Index>(args, token, num_tokens * args.top_k, next_index, group);
    sort_selections(args, num_tokens * args.top_k, group);
    send_group(args, token, num_tokens, epoch, next_row, next_selection, group);
    __syncwarp();
  }
}

// Tells the peers that the records are there, once all blocks have written theirs.
__device__ void signal_records(const RouteArgs& args, uint64_t epoch) {
  if (!arrive_is_last(&args.context.state->routing_sent)) return;
  ptx::fence_acq_rel_sys();
  for (int rank = threadIdx.x; rank < args.context.num_ranks(); rank += blockDim.x)
    ptx::st_release_sys(&args.context.signals_to(rank)->records_ready, epoch);
}

__device__ bool wait_for_records(const RouteArgs& args, uint64_t epoch) {
  bool here = true;
  for (int rank = threadIdx.x; rank < args.context.num_ranks(); rank += blockDim.x)
    here &= wait_for(args.context, {hepOperationRouting, hepPhaseRecords, rank, epoch},
                     &args.context.signals_from(rank)->records_ready, epoch);
  return __syncthreads_and(here);
}

__device__ const RecordHeader* header_from(const RouteArgs& args, int source, uint64_t epoch) {
  return at<RecordHeader>(args.context.own_window(),
                          args.context.window_layout.header_at(epoch, source));
}

// One warp: where each local expert's block begins, and in it the rows of each source.
__device__ void place_experts(const RouteArgs& args, const ReceiveMemory& memory, uint64_t epoch) {
  const KernelContext& context = args.context;
  const int local_experts = context.shape().num_local_experts();
  int32_t* tokens_per_expert = at<int32_t>(args.routing, context.routing_layout.tokens_per_expert);
  int32_t* expert_offsets = at<int32_t>(args.routing, context.routing_layout.expert_offsets);
  uint32_t end = 0;
  for (int base = 0; base < local_experts; base += kWarpSize) {
    const int e = base + lane_index();
    uint32_t count = 0;
    for (int source = 0; e < local_experts && source < context.num_ranks(); ++source) {
      memory.place_base[e * context.num_ranks() + source] = count;
      count += __ldcg(
          at<uint32_t>(context.own_window(), context.window_layout.counts_at(epoch, source)) + e);
    }
    const uint32_t aligned = align_up(count, args.alignment);
    const uint32_t through = warp_inclusive_sum(aligned);
    const uint32_t offset = end + through - aligned;
    for (int source = 0; e < local_experts && source < context.num_ranks(); ++source)
      memory.place_base[e * context.num_ranks() + source] += offset;
    if (e < local_experts && blockIdx.x == 0) {
      tokens_per_expert[e] = count;
      expert_offsets[e] = offset;
    }
    end += __shfl_sync(kFullWarp, through, kWarpSize - 1);
  }
  if (blockIdx.x == 0 && lane_index() == 0) expert_offsets[local_experts] = end;
}

// One warp: where each source's rows and selections begin.
__device__ void place_sources(const RouteArgs& args, const ReceiveMemory& memory, uint64_t epoch) {
  const KernelContext& context = args.context;
  uint32_t rows = 0, selections = 0;
  for (int base = 0; base < context.num_ranks(); base += kWarpSize) {
    const int source = base + lane_index();
    uint4 header = make_uint4(0, 0, 0, 0);
    if (source < context.num_ranks())
      header = __ldcg(reinterpret_cast<const uint4*>(header_from(args, source, epoch)));
    const uint32_t num_rows = header.y, num_selections = header.z;
    if (source < context.num_ranks() && header.w != args.top_k)
      record_failure(context, {hepOperationRouting, hepPhaseRecords, source, epoch},
                     hepErrorMismatch, args.top_k, header.w);
    const uint32_t rows_through = warp_inclusive_sum(num_rows);
    const uint32_t selections_through = warp_inclusive_sum(num_selections);
    if (source < context.num_ranks()) {
      memory.row_base[source] = rows + rows_through - num_rows;
      memory.selection_base[source] = selections + selections_through - num_selections;
      if (blockIdx.x == 0)
        at<uint32_t>(args.routing, context.routing_layout.source_tokens)[source] = header.x;
    }
    rows += __shfl_sync(kFullWarp, rows_through, kWarpSize - 1);
    selections += __shfl_sync(kFullWarp, selections_through, kWarpSize - 1);
  }
  if (lane_index() == 0) {
    memory.row_base[context.num_ranks()] = rows;
    memory.selection_base[context.num_ranks()] = selections;
  }
  __syncwarp();
  if (blockIdx.x != 0) return;
  uint32_t* source_rows = at<uint32_t>(args.routing, context.routing_layout.source_rows);
  for (int i = lane_index(); i <= context.num_ranks(); i += kWarpSize)
    source_rows[i] = memory.row_base[i];
  if (lane_index() == 0) {
    RoutingTotals* totals = at<RoutingTotals>(args.routing, context.routing_layout.totals);
    totals->num_flat_rows = rows;
    totals->num_expert_rows = selections;
  }
}

// Records of one source become absolute; lanes of all parts take every parts * 32nd.
__device__ void receive_rows(const RouteArgs& args, const ReceiveMemory& memory, int source,
                             int part, int parts, uint64_t epoch) {
  const KernelContext& context = args.context;
  const uint32_t row_base = memory.row_base[source];
  const uint32_t num_rows = memory.row_base[source + 1] - row_base;
  const int num_chunks =
      ceil_div(__ldcg(&header_from(args, source, epoch)->num_tokens), kChunkTokens);
  const uint4* incoming =
      at<uint4>(context.own_window(), context.window_layout.rows_at(epoch, source));
  uint4* rows = at<uint4>(args.routing, context.routing_layout.rows) + row_base;
  uint32_t* chunk_rows = at<uint32_t>(args.routing, context.routing_layout.chunk_rows) +
                         static_cast<size_t>(source) * (context.shape().max_chunks() + 1);

  for (uint32_t i = part * kWarpSize + lane_index(); i < num_rows; i += parts * kWarpSize) {
    uint4 raw = __ldcg(incoming + i);
    Row& row = reinterpret_cast<Row&>(raw);
    row.first += memory.selection_base[source];
    rows[i] = raw;

    // The first row of a chunk is where it begins, and where empty chunks before it begin, too.
    const int chunk = row.token / kChunkTokens;
    const int previous = i == 0 ? -1 : static_cast<int>(__ldcg(&incoming[i - 1].x)) / kChunkTokens;
    for (int c = previous + 1; c <= chunk; ++c) chunk_rows[c] = row_base + i;
    if (i == num_rows - 1)
      for (int c = chunk + 1; c <= num_chunks; ++c) chunk_rows[c] = row_base + num_rows;
  }
  if (num_rows == 0)
    for (int c = part * kWarpSize + lane_index(); c <= num_chunks; c += parts * kWarpSize)
      chunk_rows[c] = row_base;
}

__device__ void receive_selections(const RouteArgs& args, const ReceiveMemory& memory, int source,
                                   int part, int parts, uint64_t epoch) {
  const KernelContext& context = args.context;
  const uint32_t base = memory.selection_base[source];
  const uint32_t count = memory.selection_base[source + 1] - base;
  const uint2* incoming =
      at<uint2>(context.own_window(), context.window_layout.selections_at(epoch, source));
  uint2* selections = at<uint2>(args.routing, context.routing_layout.selections) + base;
  for (uint32_t i = part * kWarpSize + lane_index(); i < count; i += parts * kWarpSize) {
    uint2 raw = __ldcg(incoming + i);
    Selection& selection = reinterpret_cast<Selection&>(raw);
    selection.place += memory.place_base[selection.expert * context.num_ranks() + source];
    selections[i] = raw;
  }
}

__device__ void receive_records(const RouteArgs& args, const ReceiveMemory& memory,
                                uint64_t epoch) {
  if (warp_index() == 0) place_experts(args, memory, epoch);
  if (warp_index() == 1) place_sources(args, memory, epoch);
  __syncthreads();

  const int ranks = args.context.num_ranks();
  const int warps = gridDim.x * (blockDim.x / kWarpSize);
  const int parts = max(warps / ranks, 1);
  for (int task = warp_index() * gridDim.x + blockIdx.x; task < ranks * parts; task += warps) {
    receive_rows(args, memory, task % ranks, task / ranks, parts, epoch);
    receive_selections(args, memory, task % ranks, task / ranks, parts, epoch);
  }
}

template <typename Index>
__global__ void __launch_bounds__(kMaxThreads)
    route_kernel(const __grid_constant__ RouteArgs args) {
  extern __shared__ uint4 shared[];
  const KernelContext& context = args.context;
  if (__syncthreads_or(has_failed(context))) return;
  const uint64_t epoch = context.state->routing.epoch + 1;

  const SendMemory sending(shared, context.shape(), blockDim.x / kWarpSize);
  const TokenRange range = tokens_of_warp(args);
  const int entries = context.shape().num_experts + context.num_ranks();
  count_tokens<Index>(args, range, sending.counters + warp_index() * entries);
  __syncthreads();
  sum_over_warps(args, sending);
  if (!wait_for_blocks(args, epoch)) return;
  sum_over_blocks(args, sending);
  send_headers(args, sending, epoch);
  send_records<Index>(args, range, sending, epoch);
  signal_records(args, epoch);

  if (!wait_for_records(args, epoch)) return;
  const ReceiveMemory receiving(shared, context.shape());
  receive_records(args, receiving, epoch);
  if (arrive_is_last(&context.state->routing.arrivals) && threadIdx.x == 0)
    context.state->routing.epoch = epoch;
}

int shared_bytes(const Shape& shape, int warps) {
  return std::max(SendMemory::bytes(shape, warps), ReceiveMemory::bytes(shape));
}

}  // namespace

cudaError_t prepare_route_kernels() {
  const cudaError_t result = prepare(route_kernel<int32_t>);
  return result == cudaSuccess ? prepare(route_kernel<int64_t>) : result;
}

cudaError_t launch_route(const RouteArgs& args, bool index64, const Plan& plan,
                         cudaStream_t stream) {
  // Many experts leave room for fewer warps; two are needed to receive.
  int warps = std::min(plan.routing_threads, kMaxThreads) / kWarpSize;
  while (warps > 2 && shared_bytes(args.context.shape(), warps) > kMaxDynamicSharedBytes) --warps;
  return launch(index64 ? route_kernel<int64_t> : route_kernel<int32_t>, plan.routing_blocks,
                warps * kWarpSize, shared_bytes(args.context.shape(), warps), stream, args);
}

}  // namespace hep
