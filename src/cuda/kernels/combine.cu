// SPDX-License-Identifier: Apache-2.0
// Combine: reduce, push, add. The grid's first blocks sum this rank's rows of each token and push the
// partial sum into a slot of the token's rank; the other blocks add up the slots of this rank's tokens.
// Both halves sum rows that lie at addresses, so both are the same pipeline: a loader warp that knows
// which rows, and reducer warps that know nothing but the ring.
//
// A block has two independent pipelines: while one waits, the other computes. A reducer warp owns a
// slice of the row and adds the rows in registers as they land, with no barrier among warps.
//
// Where no row is added to another, in flat without weights, the first half has a sender in place of
// the reducers: one warp that sends the rows as they are.
#include "cuda/kernels/launch.h"
#include "cuda/kernels/reduce.cuh"
#include "cuda/kernels/signal.cuh"
#include "cuda/kernels/warp.cuh"

namespace hep {
namespace {

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
    load(nullptr, {nullptr, address, 0.0f, 0, 0, 0});  // no bytes: nothing is added or sent
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
// lane 0. Looked up ahead of time: nothing in find_rows() waits for what is loaded.
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
  const bool all_free = __all_sync(kFullWarp, free);
  __syncwarp();  // a vote does not order memory
  return all_free;
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
  __syncwarp();  // a vote does not order memory
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
      sending
          ? Ring<Contribution>(
                memory, PipelineMemory::sending_depth(args.load_stages, args.store_stages), bytes)
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
