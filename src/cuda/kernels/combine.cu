// SPDX-License-Identifier: Apache-2.0
// Combine: reduce, push, add. The grid's first blocks sum this rank's rows of each token and push the
// partial sum into a slot of the token's rank; the other blocks add up the slots of this rank's tokens.
// Both halves sum rows that lie at addresses, so both are the same pipeline: a loader warp that knows
// which rows, and reducer warps that know nothing but the ring.
//
// A block has two independent pipelines: while one waits, the other computes. A reducer warp owns a
// slice of the row and adds the rows in registers as they land, with no barrier among warps.
#include <algorithm>

#include "cuda/kernels/bfloat16.cuh"
#include "cuda/kernels/launch.h"
#include "cuda/kernels/pipeline.cuh"
#include "cuda/kernels/signal.cuh"
#include "cuda/kernels/warp.cuh"

namespace hep {
namespace {

constexpr int kPipelines = 2;
constexpr int kReducerWarps = 7;
constexpr int kWarpsPerPipeline = 1 + kReducerWarps;
constexpr int kThreads = kPipelines * kWarpsPerPipeline * kWarpSize;

// A warp's slice: 4 registers of 16 bytes a lane. Rows longer than all slices go in segments.
constexpr int kVectorsPerLane = 4;
constexpr int kSliceBytes = kVectorsPerLane * kWarpSize * sizeof(uint4);
constexpr int kSegmentBytes = kReducerWarps * kSliceBytes;

// A signal is given when this many later rows have been sent, or nothing more is to send.
constexpr int kStoresBeforeSignal = 2;

// Rows that a warp may have on their way out; each has a buffer of a slice.
constexpr int kMaxStoreStages = 4;
constexpr int kDefaultStoreStages = 2;

// Rows that a sender has in flight before it hands the oldest one's stage back.
constexpr int kCopiesInFlight = 4;

// Signals whose rows are still on their way out, over all reducer warps of a pipeline: they are at
// most a ring apart.
constexpr int kSignalSlots = 64;
constexpr int kMaxLoadStages = 32;

// What the reducers do with a stage.
struct Contribution {
  char* destination;  // of the sum's segment
  uint64_t* signal;   // set to the epoch once everything up to this sum is written; NULL: none
  float weight;
  uint32_t bytes;  // of the segment
  uint32_t flags;
  uint32_t reserved;
};
enum : uint32_t {
  kFirst = 1,    // begins a sum
  kLast = 2,     // ends it
  kNothing = 4,  // holds no row: the sum is +0
  kNoSum = 8,    // only a signal
  kEnd = 16
};

struct PipelineMemory {
  Ring<Contribution> ring;
  int store_stages;
  char* outgoing;             // [kReducerWarps][store_stages][kSliceBytes]
  uint32_t* signal_arrivals;  // [kSignalSlots] reducer warps that have come to a signal

  __device__ PipelineMemory(char* memory, int load_stages, int num_store_stages, int stage_bytes)
      : ring(memory, load_stages, stage_bytes),
        store_stages(num_store_stages),
        outgoing(memory + Ring<Contribution>::bytes(load_stages, stage_bytes)),
        signal_arrivals(
            reinterpret_cast<uint32_t*>(outgoing + kReducerWarps * store_stages * kSliceBytes)) {}

  __host__ __device__ static constexpr int bytes(int load_stages, int store_stages,
                                                 int stage_bytes) {
    return Ring<Contribution>::bytes(load_stages, stage_bytes) +
           kReducerWarps * store_stages * kSliceBytes + kSignalSlots * sizeof(uint32_t);
  }
};

__host__ __device__ constexpr int stage_bytes(int row_bytes) {
  return align_up(row_bytes < kSegmentBytes ? row_bytes : kSegmentBytes, kStageAlignment);
}

// ------------------------------------------------------------------------------------- reducers

// A reducer warp's own bookkeeping of its stores: which buffer is next, and which signal waits for
// them. A signal is given after later rows have been sent, so that nobody waits for the wire. Stores
// and waits are those of lane 0.
struct Outgoing {
  const PipelineMemory& memory;
  uint64_t epoch;
  char* buffers;
  int next_buffer = 0;
  uint64_t* pending = nullptr;
  int stores_since = 0;
  bool stored = false;   // anything since the last signal
  uint32_t signals = 0;  // that this warp has come to

  __device__ Outgoing(const PipelineMemory& pipeline, uint64_t combine_epoch, int reducer)
      : memory(pipeline),
        epoch(combine_epoch),
        buffers(pipeline.outgoing + reducer * pipeline.store_stages * kSliceBytes) {}

  // All lanes: a buffer that no store reads any more.
  __device__ uint4* buffer() {
    if (lane_index() == 0) wait_read(memory.store_stages - 1);
    __syncwarp();
    return reinterpret_cast<uint4*>(buffers + next_buffer * kSliceBytes);
  }

  // All lanes: sends what they have written to the buffer.
  __device__ void send_buffer(char* destination, uint32_t bytes) {
    ptx::fence_proxy_async_shared();
    __syncwarp();
    if (lane_index() == 0) send(destination, buffers + next_buffer * kSliceBytes, bytes);
    if (++next_buffer == memory.store_stages) next_buffer = 0;
  }

  // Lane 0: all rows so far belong to what this signal tells.
  __device__ void signal(uint64_t* address) {
    flush();
    if (stored)
      pending = address;
    else
      give(address);
    stored = false;
    stores_since = 0;
  }

  // Lane 0.
  __device__ void flush() {
    if (pending == nullptr) return;
    ptx::bulk_wait<0>();
    give(pending);
    pending = nullptr;
  }

 private:
  __device__ void send(char* destination, const char* source, uint32_t bytes) {
    ptx::bulk_store(destination, source, bytes);
    ptx::bulk_commit();
    stored = true;
    if (pending != nullptr && ++stores_since == kStoresBeforeSignal) {
      ptx::bulk_wait<kStoresBeforeSignal>();
      give(pending);
      pending = nullptr;
    }
  }

  __device__ static void wait_read(int newer_stores) {
    static_assert(kMaxStoreStages == 4);
    switch (newer_stores) {
      case 0: return ptx::bulk_wait_read<0>();
      case 1: return ptx::bulk_wait_read<1>();
      case 2: return ptx::bulk_wait_read<2>();
      default: return ptx::bulk_wait_read<3>();
    }
  }

  // The last warp to come to a signal gives it.
  __device__ void give(uint64_t* address) {
    uint32_t* arrivals = &memory.signal_arrivals[signals++ % kSignalSlots];
    if (ptx::atomic_add_acq_rel_cta(arrivals, 1) + 1 < kReducerWarps) return;
    *arrivals = 0;
    ptx::st_release_sys(address, epoch);
  }
};

// Calls body(i, vector) for the lane's vectors of a slice. Instruction issue bounds the reducers, so
// slices that are whole are not asked for their end.
template <bool kWhole, typename Body>
__device__ void for_each_vector(uint32_t vectors, Body body) {
#pragma unroll
  for (int i = 0; i < kVectorsPerLane; ++i) {
    const uint32_t vector = i * kWarpSize + lane_index();
    if (kWhole || vector < vectors) body(i, vector);
  }
}

template <bool kWhole>
__device__ void add_row(Bfloat16x8 (&sum)[kVectorsPerLane], const uint4* row, uint32_t vectors,
                        const Contribution& item) {
  if (item.flags & kNothing)
    for_each_vector<kWhole>(vectors, [&](int i, uint32_t) { sum[i].clear(); });
  else if (item.flags & kFirst)
    for_each_vector<kWhole>(
        vectors, [&](int i, uint32_t vector) { sum[i].assign(row[vector], item.weight); });
  else
    for_each_vector<kWhole>(vectors,
                            [&](int i, uint32_t vector) { sum[i].add(row[vector], item.weight); });
}

__device__ void reduce(const PipelineMemory& memory, int reducer, uint64_t epoch) {
  constexpr uint32_t kWholeSlice = kVectorsPerLane * kWarpSize;
  const Ring<Contribution>& ring = memory.ring;
  const int lane = lane_index();
  const uint32_t slice = reducer * kSliceBytes;
  Outgoing outgoing(memory, epoch, reducer);
  Bfloat16x8 sum[kVectorsPerLane];

  for (Cursor cursor;; cursor.advance(ring.depth)) {
    wait_phase(&ring.full[cursor.stage], cursor.parity);
    const Contribution item = ring.items[cursor.stage];
    if (item.flags & kEnd) break;
    const uint4* row = reinterpret_cast<const uint4*>(ring.stage(cursor.stage) + slice);
    const uint32_t bytes = item.bytes > slice ? min(item.bytes - slice, kSliceBytes) : 0;
    const uint32_t vectors = bytes / sizeof(uint4);

    if (vectors == kWholeSlice)
      add_row<true>(sum, row, vectors, item);
    else
      add_row<false>(sum, row, vectors, item);
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(&ring.empty[cursor.stage]);
    if ((item.flags & kLast) && bytes > 0) {
      uint4* buffer = outgoing.buffer();
      for_each_vector<false>(vectors,
                             [&](int i, uint32_t vector) { buffer[vector] = sum[i].round(); });
      outgoing.send_buffer(item.destination + slice, bytes);
    }
    if (item.signal != nullptr && lane == 0) outgoing.signal(item.signal);
  }
  if (lane == 0) {
    outgoing.flush();
    ptx::bulk_wait<0>();
  }
}

// --------------------------------------------------------------------------------------- sender

// All lanes: a stage whose row is nothing becomes a row of zeros.
__device__ void clear_stage(char* stage, uint32_t bytes) {
  for (uint32_t i = lane_index(); i < bytes / sizeof(uint4); i += kWarpSize)
    reinterpret_cast<uint4*>(stage)[i] = make_uint4(0, 0, 0, 0);
  ptx::fence_proxy_async_shared();
  __syncwarp();
}

// Where no row is added to another, one warp sends them as they are, straight from the stages.
template <int kInFlight>
__device__ void send_rows(const Ring<Contribution>& ring, uint64_t epoch) {
  const bool leader = lane_index() == 0;
  DelayedRelease<kInFlight> release;
  uint64_t* pending = nullptr;  // a signal that waits for rows on their way
  int stores_since = 0;
  for (Cursor cursor;; cursor.advance(ring.depth)) {
    wait_phase(&ring.full[cursor.stage], cursor.parity);
    const Contribution item = ring.items[cursor.stage];
    if (pending != nullptr &&
        (item.signal != nullptr || (item.flags & kEnd) || stores_since == kStoresBeforeSignal)) {
      if (leader) {
        if (stores_since == kStoresBeforeSignal)
          ptx::bulk_wait<kStoresBeforeSignal>();
        else
          ptx::bulk_wait<0>();
        ptx::st_release_sys(pending, epoch);
      }
      pending = nullptr;
    }
    if (item.flags & kEnd) break;

    char* stage = ring.stage(cursor.stage);
    if (item.flags & kNothing) clear_stage(stage, item.bytes);
    if (leader && item.bytes > 0) ptx::bulk_store(item.destination, stage, item.bytes);
    ptx::bulk_commit();
    release.stored(ring);
    ++stores_since;
    if (item.signal != nullptr) {
      pending = item.signal;
      stores_since = 0;
    }
  }
  ptx::bulk_wait<0>();
}

// -------------------------------------------------------------------------------------- loaders

// One lane puts contributions into the ring.
struct ContributionLoader {
  Producer<Contribution> producer;

  // `row` NULL: the contribution is nothing.
  __device__ void load(const char* row, Contribution item) {
    const uint32_t bytes = row != nullptr ? item.bytes : 0;
    producer.acquire(item, bytes);
    if (bytes > 0) producer.load(0, row, bytes);
    producer.advance();
  }

  __device__ void signal(uint64_t* address) {
    load(nullptr, {nullptr, address, 0.0f, 0, kNoSum, 0});
  }

  __device__ void end() { load(nullptr, {nullptr, nullptr, 0.0f, 0, kEnd, 0}); }
};

// Loads the rows of one sum, segment by segment. `contributing` has a bit for each lane that holds a
// row's address and weight; rows are added in the order of the lanes. By all lanes.
__device__ void load_sum(ContributionLoader& loader, int row_bytes, uint32_t contributing,
                         const char* row, float weight, char* destination) {
  for (int offset = 0; offset < row_bytes; offset += kSegmentBytes) {
    Contribution item{destination + offset,
                      nullptr,
                      0.0f,
                      static_cast<uint32_t>(min(row_bytes - offset, kSegmentBytes)),
                      kFirst,
                      0};
    if (contributing == 0) {
      item.flags |= kLast | kNothing;
      if (lane_index() == 0) loader.load(nullptr, item);
      continue;
    }
    for (uint32_t left = contributing; left != 0; left &= left - 1) {
      const int lane = __ffs(left) - 1;
      const uint64_t address = __shfl_sync(kFullWarp, reinterpret_cast<uint64_t>(row), lane);
      item.weight = __shfl_sync(kFullWarp, weight, lane);
      if ((left & (left - 1)) == 0) item.flags |= kLast;
      if (lane_index() == 0) loader.load(reinterpret_cast<const char*>(address) + offset, item);
      item.flags = 0;
    }
  }
}

// Where this rank's rows of one token lie: in expert-major one a lane, by selection; in flat one, in
// lane 0. Looked up ahead of time: nothing here waits for what is loaded.
struct TokenRows {
  uint32_t place;
  float weight;
};

template <bool kExpertMajor>
__device__ int num_rows_of(const Row& row) {
  return kExpertMajor ? row.count : 1;
}

template <bool kExpertMajor>
__device__ TokenRows find_rows(const CombineArgs& args, const Row& row, uint32_t index) {
  const KernelContext& context = args.context;
  const uint32_t selection = row.first + lane_index();
  TokenRows found{index, 1.0f};
  if (!kExpertMajor || lane_index() >= row.count) return found;
  found.place = at<Selection>(args.routing, context.routing_layout.selections)[selection].place;
  if (args.call.weight_mode == hepWeightsDispatched)
    found.weight = at<float>(args.routing, context.routing_layout.weights)[selection];
  return found;
}

// The weight of the lane's row, unless it has been looked up.
template <bool kExpertMajor>
__device__ float weight_of(const CombineArgs& args, const Row& row, const TokenRows& found) {
  if (args.call.weight_mode == hepWeightsRow) return args.call.row_weights[found.place];
  if (kExpertMajor || args.call.weight_mode == hepWeightsNone) return found.weight;
  // A flat row's weight is the sum of its selections'.
  const float* weights = at<float>(args.routing, args.context.routing_layout.weights) + row.first;
  float sum = weights[0];
  for (int i = 1; i < row.count; ++i) sum += weights[i];
  return sum;
}

// Waits until no source reads the partials of the last combine any more.
__device__ bool wait_for_slots(const CombineArgs& args, uint64_t epoch) {
  const KernelContext& context = args.context;
  bool free = true;
  for (int rank = lane_index(); rank < context.num_ranks(); rank += kWarpSize)
    free &= wait_for(context, {hepOperationCombine, hepPhaseSlots, rank, epoch},
                     &context.signals_from(rank)->slots_free, epoch - 1);
  return __all_sync(kFullWarp, free);
}

// Sums this rank's rows for the tokens of one chunk of one source, and signals the source.
template <bool kExpertMajor>
__device__ void load_chunk(const CombineArgs& args, int source, int chunk,
                           ContributionLoader& loader) {
  const KernelContext& context = args.context;
  const uint32_t* chunk_rows = at<uint32_t>(args.routing, context.routing_layout.chunk_rows) +
                               static_cast<size_t>(source) * (context.shape().max_chunks() + 1) +
                               chunk;
  const uint32_t begin = chunk_rows[0], end = chunk_rows[1];
  const int row_bytes = context.shape().partial_row_bytes;
  void* window = context.windows[source];

  static_assert(kChunkTokens <= kWarpSize);
  uint4 record = make_uint4(0, 0, 0, 0);
  if (begin + lane_index() < end)
    record = at<uint4>(args.routing, context.routing_layout.rows)[begin + lane_index()];
  const auto row_at = [&](uint32_t index) {
    uint4 raw;
    raw.x = __shfl_sync(kFullWarp, record.x, index - begin);
    raw.y = __shfl_sync(kFullWarp, record.y, index - begin);
    raw.z = __shfl_sync(kFullWarp, record.z, index - begin);
    return reinterpret_cast<const Row&>(raw);
  };

  // The next row is looked up before the current one waits for free stages.
  TokenRows next{};
  if (begin < end) next = find_rows<kExpertMajor>(args, row_at(begin), begin);
  for (uint32_t index = begin; index < end; ++index) {
    const Row row = row_at(index);
    const TokenRows current = next;
    if (index + 1 < end) next = find_rows<kExpertMajor>(args, row_at(index + 1), index + 1);
    const bool contributes =
        lane_index() < num_rows_of<kExpertMajor>(row) && current.place < args.call.capacity;
    const float weight = contributes ? weight_of<kExpertMajor>(args, row, current) : 0.0f;
    load_sum(loader, row_bytes, __ballot_sync(kFullWarp, contributes),
             static_cast<const char*>(args.call.y) + int64_t{current.place} * row_bytes, weight,
             at<char>(window, context.window_layout.partial_at(row.token, row.ordinal)));
  }
  if (lane_index() == 0)
    loader.signal(at<uint64_t>(window, context.window_layout.chunk_ready_at(chunk, context.rank)));
}

// The first half. Chunks are visited in ascending order, each GPU beginning with another source.
template <bool kExpertMajor>
__device__ void load_contributions(const CombineArgs& args, uint64_t epoch, int pipeline,
                                   ContributionLoader& loader) {
  const KernelContext& context = args.context;
  const int ranks = context.num_ranks();
  const uint32_t* source_tokens = at<uint32_t>(args.routing, context.routing_layout.source_tokens);
  if (!wait_for_slots(args, epoch)) return;

  uint32_t most_tokens = 0;
  for (int source = 0; source < ranks; ++source)
    most_tokens = max(most_tokens, source_tokens[source]);
  const int num_tasks = ceil_div(most_tokens, kChunkTokens) * ranks;
  for (int task = pipeline * args.reduce_blocks + blockIdx.x; task < num_tasks;
       task += kPipelines * args.reduce_blocks) {
    const int chunk = task / ranks;
    const int source = (context.rank + 1 + task % ranks) % ranks;
    if (chunk < ceil_div(source_tokens[source], kChunkTokens))
      load_chunk<kExpertMajor>(args, source, chunk, loader);
  }
}

// Waits until every rank has sent its partials of a chunk.
__device__ bool wait_for_partials(const CombineArgs& args, uint64_t epoch, int chunk) {
  const KernelContext& context = args.context;
  bool here = true;
  for (int rank = lane_index(); rank < context.num_ranks(); rank += kWarpSize)
    here &= wait_for(
        context, {hepOperationCombine, hepPhasePartials, rank, epoch},
        at<uint64_t>(context.own_window(), context.window_layout.chunk_ready_at(chunk, rank)),
        epoch);
  if (!__all_sync(kFullWarp, here)) return false;
  // The copy engine reads what the peers wrote.
  ptx::fence_proxy_async();
  return true;
}

// The second half: adds the partials of this rank's tokens.
__device__ void load_partials(const CombineArgs& args, uint64_t epoch, int pipeline,
                              ContributionLoader& loader) {
  const KernelContext& context = args.context;
  const uint8_t* partial_counts = at<uint8_t>(args.routing, context.routing_layout.partial_counts);
  const int row_bytes = context.shape().partial_row_bytes;
  const int add_blocks = gridDim.x - args.reduce_blocks;
  const int block = blockIdx.x - args.reduce_blocks;
  const int lane = lane_index();

  for (int chunk = pipeline * add_blocks + block; chunk < ceil_div(args.num_tokens, kChunkTokens);
       chunk += kPipelines * add_blocks) {
    const int begin = chunk * kChunkTokens;
    const int end = min(begin + kChunkTokens, args.num_tokens);
    const int counts = begin + lane < end ? partial_counts[begin + lane] : 0;
    if (!wait_for_partials(args, epoch, chunk)) return;
    for (int token = begin; token < end; ++token) {
      const int count = __shfl_sync(kFullWarp, counts, token - begin);
      const char* partial =
          at<char>(context.own_window(), context.window_layout.partial_at(token, lane));
      load_sum(loader, row_bytes, __ballot_sync(kFullWarp, lane < count), partial, 1.0f,
               static_cast<char*>(args.call.out) + static_cast<int64_t>(token) * row_bytes);
    }
  }
}

// ------------------------------------------------------------------------------------------------

// In the last block: all partials have been added, the peers may overwrite them.
__device__ void finish(const CombineArgs& args, uint64_t epoch) {
  const KernelContext& context = args.context;
  for (int rank = threadIdx.x; rank < context.num_ranks(); rank += blockDim.x)
    ptx::st_release_sys(&context.signals_to(rank)->slots_free, epoch);
  if (threadIdx.x == 0) context.state->combine.epoch = epoch;
}

template <bool kExpertMajor>
__global__ void __launch_bounds__(kThreads, 1)
    combine_kernel(const __grid_constant__ CombineArgs args) {
  extern __shared__ __align__(kStageAlignment) char shared[];
  const KernelContext& context = args.context;
  if (__syncthreads_or(has_failed(context))) return;
  const uint64_t epoch = context.state->combine.epoch + 1;

  const int pipeline = warp_index() / kWarpsPerPipeline;
  const int role = warp_index() % kWarpsPerPipeline;
  const bool reducing = blockIdx.x < args.reduce_blocks;
  // A NaN that is sent as it is becomes canonical when the partials are added.
  const bool sending = reducing && !kExpertMajor && args.call.weight_mode == hepWeightsNone;
  const int bytes = stage_bytes(context.shape().partial_row_bytes);
  char* memory =
      shared + pipeline * PipelineMemory::bytes(args.load_stages, args.store_stages, bytes);
  const PipelineMemory reducers(memory, args.load_stages, args.store_stages, bytes);
  const Ring<Contribution> ring =
      sending ? Ring<Contribution>(memory, args.load_stages + args.store_stages, bytes)
              : reducers.ring;
  if (role == 0) {
    if (lane_index() == 0) ring.initialize(sending ? 1 : kReducerWarps);
    if (!sending)
      for (int i = lane_index(); i < kSignalSlots; i += kWarpSize) reducers.signal_arrivals[i] = 0;
  }
  __syncthreads();

  if (role == 0) {
    ContributionLoader loader{{ring, {}}};
    if (reducing)
      load_contributions<kExpertMajor>(args, epoch, pipeline, loader);
    else
      load_partials(args, epoch, pipeline, loader);
    if (lane_index() == 0) loader.end();
  } else if (!sending) {
    reduce(reducers, role - 1, epoch);
  } else if (role == 1) {
    if (ring.depth > 2 * kCopiesInFlight)
      send_rows<kCopiesInFlight>(ring, epoch);
    else
      send_rows<1>(ring, epoch);
  }
  if (arrive_is_last(&context.state->combine.arrivals) && !has_failed(context)) finish(args, epoch);
}

}  // namespace

cudaError_t prepare_combine_kernels() {
  const cudaError_t result = prepare(combine_kernel<false>);
  return result == cudaSuccess ? prepare(combine_kernel<true>) : result;
}

cudaError_t launch_combine(CombineArgs args, const Plan& plan, cudaStream_t stream) {
  const int bytes = stage_bytes(args.context.shape().partial_row_bytes);
  args.store_stages =
      plan.combine_store_stages > 0 ? plan.combine_store_stages : kDefaultStoreStages;
  args.load_stages = plan.combine_load_stages > 0 ? plan.combine_load_stages : kMaxLoadStages;
  args.reduce_blocks = plan.combine_reduce_blocks[args.call.layout];
  const auto shared_bytes = [&] {
    return kPipelines * PipelineMemory::bytes(args.load_stages, args.store_stages, bytes);
  };
  while (shared_bytes() > kMaxDynamicSharedBytes) --args.load_stages;
  const bool expert_major = args.call.layout == hepLayoutExpertMajor;
  return launch(expert_major ? combine_kernel<true> : combine_kernel<false>, plan.combine_blocks,
                kThreads, shared_bytes(), stream, args);
}

}  // namespace hep
