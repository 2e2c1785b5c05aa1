// SPDX-License-Identifier: Apache-2.0
// Combine: reduce, push, add. Some blocks begin by summing this rank's rows of each token and pushing the
// partial sum into a slot of the token's rank; all, these too when they are done, add up the slots of
// this rank's tokens. Both halves sum rows that lie at addresses, so both are the same: a loader warp
// that knows which rows, and reducer warps that know nothing but the ring.
//
// A block has two independent pipelines: while one waits, the other computes.
//
// Where no row is added to another, in flat without weights, the first half needs no reducers: a
// forwarder sends the rows as they are. Those that the second half can read where they lie, because
// they are this rank's own or in a window, are loaded from there, in place of partial sums.
#include <algorithm>
#include <type_traits>

#include "cuda/kernels/forward.cuh"
#include "cuda/kernels/launch.h"
#include "cuda/kernels/reduce.cuh"
#include "cuda/kernels/signal.cuh"

namespace hep {
namespace {

// Tokens of a task of the second half; the tasks are few, and the last to end should be short.
constexpr int kTokensPerTask = 8;
static_assert(kChunkTokens % kTokensPerTask == 0);

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

  // What sends_rows_as_they_are() says, as far as possible at compile time.
  static __device__ bool as_they_are(const CombineArgs& args) {
    return kOneType && layout(args) == hepLayoutFlat && args.call.weight_mode == hepWeightsNone;
  }
};

// ---------------------------------------------------------------------- outputs that stay in place

// This rank's outputs for the tokens of another.
struct OutputRange {
  int64_t first, count;  // rows of y
};

__device__ OutputRange outputs_for(const CombineArgs& args, int rank) {
  const uint32_t* source_rows = at<uint32_t>(args.routing, args.context.routing_layout.source_rows);
  const int64_t first = source_rows[rank], end = source_rows[rank + 1];
  return {first, max(min(end, args.call.capacity) - first, int64_t{0})};
}

// Tells each peer where its rows lie, once it has read what it was told before. By one block.
__device__ void publish_outputs(const CombineArgs& args, uint64_t epoch) {
  const KernelContext& context = args.context;
  for (int rank = threadIdx.x; rank < context.num_ranks(); rank += blockDim.x) {
    if (rank == context.rank) continue;
    if (!wait_for(context, {hepOperationCombine, hepPhaseSlots, rank, epoch},
                  &context.signals_from(rank)->slots_free, epoch - 1))
      return;
    const OutputRange range = outputs_for(args, rank);
    const uint64_t offset = args.outputs_offset == kNotInWindow
                                ? kNotInWindow
                                : args.outputs_offset + range.first * args.row_bytes;
    Signals* signals = context.signals_to(rank);
    ptx::st_relaxed_sys(&signals->outputs_offset, offset);
    ptx::st_relaxed_sys(&signals->num_outputs, range.count);
    ptx::st_release_sys(&signals->outputs_ready, epoch);
  }
}

// What a peer has published.
__device__ bool find_outputs(const CombineArgs& args, uint64_t epoch, int rank, Outputs* outputs) {
  const KernelContext& context = args.context;
  const Signals* signals = context.signals_from(rank);
  if (!wait_for(context, {hepOperationCombine, hepPhasePartials, rank, epoch},
                &signals->outputs_ready, epoch))
    return false;
  const uint64_t offset = ptx::ld_relaxed_sys(&signals->outputs_offset);
  *outputs = {at<char>(context.windows[rank], offset),
              static_cast<uint32_t>(ptx::ld_relaxed_sys(&signals->num_outputs)),
              offset != kNotInWindow};
  return true;
}

// Of all ranks, this one's wherever they lie. By one warp.
__device__ bool find_all_outputs(const CombineArgs& args, uint64_t epoch, Outputs* outputs) {
  const KernelContext& context = args.context;
  bool found = true;
  for (int rank = lane_index(); rank < context.num_ranks(); rank += kWarpSize) {
    if (rank != context.rank) {
      found &= find_outputs(args, epoch, rank, &outputs[rank]);
      continue;
    }
    const OutputRange range = outputs_for(args, rank);
    outputs[rank] = {static_cast<const char*>(args.call.y) + range.first * args.row_bytes,
                     static_cast<uint32_t>(range.count), true};
  }
  if (!__all_sync(kFullWarp, found)) return false;
  __syncwarp();  // a vote does not order memory
  // The copy engine reads what the peers wrote by other means.
  ptx::fence_proxy_async();
  return true;
}

// ---------------------------------------------------------------------------------- the first half

// What leads to this rank's rows of one token: in the expert layouts one a lane, by selection; in flat
// one, in lane 0. Looked up ahead of time: nothing in find_rows() waits for what is loaded.
struct TokenRows {
  Selection selection;  // of the lane, in the expert layouts
  float weight;         // of the lane's selection
};

template <typename V>
__device__ TokenRows find_rows(const CombineArgs& args, const Row& row) {
  const KernelContext& context = args.context;
  const uint32_t selection = row.first + lane_index();
  TokenRows found{{0, 0, 0}, 1.0f};
  if (lane_index() >= row.count) return found;
  if (V::layout(args) != hepLayoutFlat)
    found.selection = at<Selection>(args.routing, context.routing_layout.selections)[selection];
  if (args.call.weight_mode == hepWeightsDispatched)
    found.weight = at<float>(args.routing, context.routing_layout.weights)[selection];
  return found;
}

// Where the lane's row lies in y; kDropped if it has none.
template <typename V>
__device__ int64_t place_of_lane(const CombineArgs& args, const Row& row, uint32_t index,
                                 const TokenRows& found) {
  if (V::layout(args) == hepLayoutFlat)
    return lane_index() == 0 && index < args.call.capacity ? index : kDropped;
  if (lane_index() >= row.count) return kDropped;
  return row_of_selection(V::layout(args), args.call.capacity,
                          at<int32_t>(args.routing, args.context.routing_layout.expert_offsets),
                          found.selection);
}

// The weight of the lane's row. By all lanes.
template <typename V>
__device__ float weight_of(const CombineArgs& args, const Row& row, const TokenRows& found,
                           int64_t place) {
  if (args.call.weight_mode == hepWeightsRow)
    return place != kDropped ? args.call.row_weights[place] : 0.0f;
  if (V::layout(args) != hepLayoutFlat) return found.weight;
  // A flat row's weight is the sum of its selections'.
  float sum = found.weight;
  for (int i = 1; i < row.count && args.call.weight_mode == hepWeightsDispatched; ++i)
    sum += __shfl_sync(kFullWarp, found.weight, i);
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

// This rank's rows for the tokens of one chunk of one source, to be summed or forwarded; then the
// signal to the source.
template <typename V>
__device__ void load_chunk(const CombineArgs& args, int source, int chunk,
                           ContributionLoader& loader) {
  const KernelContext& context = args.context;
  const uint32_t* chunk_rows = at<uint32_t>(args.routing, context.routing_layout.chunk_rows) +
                               static_cast<size_t>(source) * (context.shape().max_chunks() + 1) +
                               chunk;
  const uint32_t begin = chunk_rows[0], end = chunk_rows[1];
  const int row_bytes = args.row_bytes;
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
  if (begin < end) next = find_rows<V>(args, row_at(begin));
  for (uint32_t index = begin; index < end; ++index) {
    const Row row = row_at(index);
    const TokenRows current = next;
    if (index + 1 < end) next = find_rows<V>(args, row_at(index + 1));
    const int64_t place = place_of_lane<V>(args, row, index, current);
    const float weight = weight_of<V>(args, row, current, place);
    load_sum<typename V::Type, typename V::Partial>(
        loader, row_bytes, __ballot_sync(kFullWarp, place != kDropped),
        static_cast<const char*>(args.call.y) + place * row_bytes, weight,
        at<char>(window, context.window_layout.partial_at(row.token, row.ordinal)), 0);
  }
  if (lane_index() == 0)
    loader.signal(at<uint64_t>(window, context.window_layout.chunk_ready_at(chunk, context.rank)));
}

// Chunks are visited in ascending order, each GPU beginning with another source. A block keeps to one
// source if there are enough blocks and they divide evenly, as the plan has seen to: blocks that change
// theirs pile up at the slowest. Where rows arrive as they are, this rank's own need not be sent.
template <typename V>
__device__ void load_contributions(const CombineArgs& args, uint64_t epoch, int pipeline,
                                   ContributionLoader& loader) {
  const KernelContext& context = args.context;
  const int ranks = context.num_ranks();
  const int sources = V::as_they_are(args) ? ranks - 1 : ranks;
  const uint32_t* source_tokens = at<uint32_t>(args.routing, context.routing_layout.source_tokens);
  if (sources == 0 || !wait_for_slots(args, epoch)) return;

  uint32_t most_tokens = 0;
  for (int source = 0; source < ranks; ++source)
    most_tokens = max(most_tokens, source_tokens[source]);
  const int num_tasks = ceil_div(most_tokens, kChunkTokens) * sources;
  for (int task = pipeline * args.first_half_blocks + blockIdx.x; task < num_tasks;
       task += kPipelines * args.first_half_blocks) {
    const int chunk = task / sources;
    const int source = (context.rank + 1 + task % sources) % ranks;
    if (chunk < ceil_div(source_tokens[source], kChunkTokens))
      load_chunk<V>(args, source, chunk, loader);
  }
}

// --------------------------------------------------------------------------------- the second half

// Deals out this rank's tokens in ascending order, a few at a time, to whichever pipeline asks: no
// token's result depends on who adds it up. By one warp; the next task is asked for early.
struct TokenTasks {
  const CombineArgs& args;
  uint64_t ticket;  // in lane 0: the next task
  int token = 0, end = 0;

  __device__ explicit TokenTasks(const CombineArgs& combine) : args(combine) { draw(); }

  // -1: no tokens are left. By all lanes.
  __device__ int next() {
    if (token == end) {
      const uint64_t task = __shfl_sync(kFullWarp, ticket, 0);
      if (task >= ceil_div(args.num_tokens, kTokensPerTask)) return -1;
      token = static_cast<int>(task) * kTokensPerTask;
      end = min(token + kTokensPerTask, args.num_tokens);
      draw();
    }
    return token++;
  }

 private:
  __device__ void draw() {
    if (lane_index() == 0)
      ticket = ptx::atomic_add_relaxed_gpu(&args.context.state->combine_tasks, 1);
  }
};

// Where the parts of a token's sum come from, one a lane.
struct TokenParts {
  int token;  // -1: none
  int count;
  SentRow sent;  // of the lane
};

__device__ TokenParts look_up(const CombineArgs& args, int token) {
  const RoutingLayout& layout = args.context.routing_layout;
  const int slots = args.context.shape().max_partials();
  TokenParts parts{token, 0, {0, 0}};
  if (token < 0) return parts;
  parts.count = at<uint8_t>(args.routing, layout.partial_counts)[token];
  if (lane_index() < slots)
    parts.sent = at<SentRow>(args.routing, layout.sent_rows)[token * slots + lane_index()];
  return parts;
}

// Waits until every rank that sends partial sums has sent those of a chunk. `outputs` NULL: all send.
__device__ bool wait_for_partials(const CombineArgs& args, uint64_t epoch, int chunk,
                                  const Outputs* outputs) {
  const KernelContext& context = args.context;
  bool here = true;
  for (int rank = lane_index(); rank < context.num_ranks(); rank += kWarpSize) {
    if (outputs != nullptr && outputs[rank].in_place) continue;
    here &= wait_for(
        context, {hepOperationCombine, hepPhasePartials, rank, epoch},
        at<uint64_t>(context.own_window(), context.window_layout.chunk_ready_at(chunk, rank)),
        epoch);
  }
  if (!__all_sync(kFullWarp, here)) return false;
  __syncwarp();  // a vote does not order memory
  // The copy engine reads what the peers wrote.
  ptx::fence_proxy_async();
  return true;
}

// The lane's part: an output in place, NULL if it was dropped there, or a partial sum.
__device__ const char* part_at(const CombineArgs& args, const TokenParts& parts,
                               const Outputs* outputs) {
  const KernelContext& context = args.context;
  if (outputs != nullptr && lane_index() < parts.count && outputs[parts.sent.rank].in_place) {
    const Outputs& from = outputs[parts.sent.rank];
    if (parts.sent.index >= from.num_rows) return nullptr;
    return from.rows + int64_t{parts.sent.index} * args.row_bytes;
  }
  return at<char>(context.own_window(),
                  context.window_layout.partial_at(parts.token, lane_index()));
}

template <typename V>
__device__ void load_parts(const CombineArgs& args, uint64_t epoch, Outputs* outputs,
                           ContributionLoader& loader) {
  if (!V::as_they_are(args))
    outputs = nullptr;
  else if (!find_all_outputs(args, epoch, outputs))
    return;
  TokenTasks tasks(args);
  int ready_chunk = -1;
  TokenParts next = look_up(args, tasks.next());
  while (next.token >= 0) {
    const TokenParts current = next;
    next = look_up(args, tasks.next());
    const int chunk = current.token / kChunkTokens;
    if (chunk != ready_chunk && !wait_for_partials(args, epoch, chunk, outputs)) return;
    ready_chunk = chunk;
    load_sum<typename V::Partial, typename V::Type>(
        loader, args.partial_row_bytes, __ballot_sync(kFullWarp, lane_index() < current.count),
        part_at(args, current, outputs), 1.0f,
        static_cast<char*>(args.call.out) + static_cast<int64_t>(current.token) * args.row_bytes,
        V::kOneType ? 0 : kPartials);
  }
}

// ------------------------------------------------------------------------------------------------

// Gradients of the weights that a thread has on their way at once.
constexpr int kGradientsAtOnce = 8;

// Takes what the ranks have sent, and leaves zeros. By all threads of a block.
__device__ void take_gradients(const CombineArgs& args) {
  if (args.call.gradients == nullptr) return;
  const KernelContext& context = args.context;
  float* sent = at<float>(context.own_window(), context.window_layout.gradients);
  for_each_loaded<kGradientsAtOnce>(
      threadIdx.x, blockDim.x, args.num_tokens * args.top_k,
      [&](uint32_t i) { return __ldcg(sent + i); },
      [&](uint32_t i, float gradient) {
        args.call.gradients[i] = gradient;
        sent[i] = 0.0f;
      });
  __syncthreads();
}

// In the last block: all that this rank needs has been added up; the peers may overwrite it. Waits
// until they have read this rank's outputs, if they do.
__device__ void finish(const CombineArgs& args, uint64_t epoch) {
  const KernelContext& context = args.context;
  take_gradients(args);
  for (int rank = threadIdx.x; rank < context.num_ranks(); rank += blockDim.x) {
    ptx::st_release_sys(&context.signals_to(rank)->slots_free, epoch);
    if (args.outputs_offset != kNotInWindow)
      wait_for(context, {hepOperationCombine, hepPhaseReaders, rank, epoch},
               &context.signals_from(rank)->slots_free, epoch);
  }
  if (threadIdx.x != 0) return;
  context.state->combine_tasks = 0;
  context.state->combine.epoch = epoch;
}

template <typename V>
__global__ void __launch_bounds__(kThreads, 1)
    combine_kernel(const __grid_constant__ CombineArgs args) {
  extern __shared__ __align__(kStageAlignment) char shared[];
  const KernelContext& context = args.context;
  const uint64_t epoch = context.state->combine.epoch + 1;
  if (__syncthreads_or(has_failed(context))) return;

  const int pipeline = warp_index() / kWarpsPerPipeline;
  const int role = warp_index() % kWarpsPerPipeline;
  const int bytes = stage_bytes(max(args.row_bytes, args.partial_row_bytes));
  const PipelineMemory memory(shared + pipeline * PipelineMemory::bytes(args.load_stages, bytes),
                              args.load_stages, bytes);
  if (role == 0 && lane_index() == 0) memory.initialize();
  // A NaN that arrives as it is becomes canonical when it is added up.
  const bool as_they_are = V::as_they_are(args);
  if (as_they_are && blockIdx.x == 0) publish_outputs(args, epoch);
  __syncthreads();

  const bool in_first_half = blockIdx.x < args.first_half_blocks;
  if (in_first_half && as_they_are) {
    if (role == 0) {
      ContributionLoader loader{{memory.forwarding, {}}};
      load_contributions<V>(args, epoch, pipeline, loader);
      if (lane_index() == 0) loader.end();
    } else if (role == 1) {
      forward(memory.forwarding, args.store_stages, epoch);
    }
    ptx::barrier_sync(1 + pipeline, kPipelineThreads);
  }
  if (role == 0) {
    ContributionLoader loader{{memory.reducing, {}}};
    if (in_first_half && !as_they_are) load_contributions<V>(args, epoch, pipeline, loader);
    load_parts<V>(args, epoch, memory.outputs, loader);
    if (lane_index() == 0) loader.end();
  } else if (role <= kReducerWarps) {
    reduce<typename V::Type, typename V::Partial>(memory, role - 1);
  } else if (lane_index() == 0) {
    give_signals(memory.signals, epoch);
  }
  if (arrive_is_last(&context.state->combine.arrivals) && !has_failed(context)) finish(args, epoch);
}

CombineGrid choose_grid(const CombineArgs& args, const Plan& plan) {
  if (args.outputs_offset != kNotInWindow) return plan.combine_in_place;
  if (sends_rows_as_they_are(args.call)) return plan.combine_forward;
  return plan.combine_reduce[args.call.layout != hepLayoutFlat];
}

struct Instance {
  int32_t type, partial_type, layout;
  void (*kernel)(CombineArgs);
};

// BF16 has a kernel for each layout; the others ask at run time.
using Bf16 = __nv_bfloat16;
constexpr int32_t kBf16 = hepTypeBfloat16, kFp16 = hepTypeFloat16, kFp32 = hepTypeFloat32;
constexpr Instance kInstances[] = {
    {kBf16, kBf16, hepLayoutFlat, combine_kernel<Variant<Bf16, Bf16, hepLayoutFlat>>},
    {kBf16, kBf16, hepLayoutExpertMajor, combine_kernel<Variant<Bf16, Bf16, hepLayoutExpertMajor>>},
    {kBf16, kBf16, hepLayoutExpertPadded,
     combine_kernel<Variant<Bf16, Bf16, hepLayoutExpertPadded>>},
    {kBf16, kFp32, kAnyLayout, combine_kernel<Variant<Bf16, float, kAnyLayout>>},
    {kFp16, kBf16, kAnyLayout, combine_kernel<Variant<__half, Bf16, kAnyLayout>>},
    {kFp16, kFp32, kAnyLayout, combine_kernel<Variant<__half, float, kAnyLayout>>},
    {kFp32, kBf16, kAnyLayout, combine_kernel<Variant<float, Bf16, kAnyLayout>>},
    {kFp32, kFp32, kAnyLayout, combine_kernel<Variant<float, float, kAnyLayout>>},
};

// NULL if there is none.
auto find_kernel(const hepCombineArgs_t& call) -> decltype(Instance::kernel) {
  for (const Instance& instance : kInstances)
    if (instance.type == call.type && instance.partial_type == call.partial_type &&
        (instance.layout == call.layout || instance.layout == kAnyLayout))
      return instance.kernel;
  return nullptr;
}

}  // namespace

cudaError_t prepare_combine_kernels() {
  for (const Instance& instance : kInstances)
    if (const cudaError_t result = prepare(instance.kernel); result != cudaSuccess) return result;
  return cudaSuccess;
}

cudaError_t launch_combine(CombineArgs args, const Plan& plan, cudaStream_t stream) {
  const int bytes = stage_bytes(std::max(args.row_bytes, args.partial_row_bytes));
  args.load_stages = plan.combine_load_stages > 0 ? plan.combine_load_stages : kMaxLoadStages;
  const CombineGrid grid = choose_grid(args, plan);
  args.first_half_blocks = grid.first_half;
  const auto shared_bytes = [&] {
    return kPipelines * PipelineMemory::bytes(args.load_stages, bytes);
  };
  while (shared_bytes() > kMaxDynamicSharedBytes) --args.load_stages;
  args.store_stages =
      std::min(plan.combine_store_stages > 0 ? plan.combine_store_stages : kDefaultStoreStages,
               args.load_stages - 1);
  return launch(find_kernel(args.call), grid.blocks, kThreads, shared_bytes(), stream, args);
}

}  // namespace hep
