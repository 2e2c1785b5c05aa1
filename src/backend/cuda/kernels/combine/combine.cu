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
#include <climits>

#include "backend/cuda/kernels/combine/forward.cuh"
#include "backend/cuda/kernels/combine/receive.cuh"
#include "backend/cuda/kernels/combine/reduce.cuh"
#include "backend/cuda/kernels/combine/send.cuh"
#include "backend/cuda/launch.h"
#include "protocol/at.h"
#include "protocol/shape.h"

namespace hep::combine {
namespace {

// Gradients of the weights that a thread has on their way at once.
constexpr int kGradientsAtOnce = 8;

// Takes what the ranks have sent, and leaves zeros. By all threads of a block.
__device__ void take_gradients(const CombineArgs& args, uint64_t epoch) {
  if (args.call.gradients == nullptr) return;
  const KernelContext& context = args.context;
  float* sent =
      at<float>(context.own_window(), context.window_layout.gradients_at(epoch, 0, args.top_k));
  for_each_loaded<kGradientsAtOnce>(
      threadIdx.x, blockDim.x, args.num_tokens * args.top_k,
      [&](uint32_t i) { return __ldcg(sent + i); },
      [&](uint32_t i, float gradient) {
        args.call.gradients[i] = gradient;
        sent[i] = 0.0f;
      });
  __syncthreads();
}

// In the last block: all that this rank needs has been added up, and calls have been compared: the peers may
// overwrite it. Waits until they have read this rank's outputs, if they do.
__device__ void finish(const CombineArgs& args, bool in_place, uint64_t epoch) {
  const KernelContext& context = args.context;
  take_gradients(args, epoch);
  for (int rank = threadIdx.x; rank < context.num_ranks(); rank += blockDim.x) {
    ptx::st_release_sys(&context.signals_to(rank)->slots_free, epoch);
    if (in_place)
      wait_for(context, {hepOperationCombine, hepPhaseReaders, rank, epoch},
               &context.signals_from(rank)->slots_free, epoch);
  }
  if (threadIdx.x == 0) context.state->combine_tasks = 0;
}

// Whether there is something to finish: the rest of the ranks need not be told where they take turns with two
// sets of slots and nobody reads outputs in place. `outputs` tells of all ranks once all threads of the block
// are done.
template <typename V>
__device__ bool has_to_finish(const CombineArgs& args, bool in_place, const Outputs* outputs) {
  const KernelContext& context = args.context;
  if (context.shape().sets != 2 || args.num_tokens > kFewTokens || args.call.gradients != nullptr ||
      in_place)
    return true;
  if (!V::as_they_are(args)) return false;
  // A thread looks at ranks that its own pipeline has looked up.
  static_assert(kMaxRanks <= kPipelineThreads);
  __syncthreads();
  bool others_in_place = false;
  for (int rank = threadIdx.x; rank < context.num_ranks(); rank += blockDim.x)
    others_in_place |= rank != context.rank && outputs[rank].in_place;
  return __syncthreads_or(others_in_place);
}

template <typename V>
__global__ void __launch_bounds__(kThreads, 1)
    combine_kernel(const __grid_constant__ CombineArgs args) {
  extern __shared__ __align__(kStageAlignment) char shared[];
  const KernelContext& context = args.context;
  const uint64_t epoch = context.state->combine.epoch + 1;
  if (!may_begin(args, hepOperationCombine, epoch)) return;

  const int pipeline = warp_index() / kWarpsPerPipeline;
  const int role = warp_index() % kWarpsPerPipeline;
  const int longest_row_bytes = max(args.row_bytes, args.partial_row_bytes);
  const int bytes = stage_bytes(longest_row_bytes);
  const PipelineMemory memory(
      shared + pipeline * PipelineMemory::bytes(args.plan.load_stages, bytes),
      args.plan.load_stages, bytes);
  // A NaN that arrives as it is becomes canonical when it is added up.
  const bool as_they_are = V::as_they_are(args);
  const int reducers = num_reducers(longest_row_bytes);
  memory.initialize(role, reducers, as_they_are);
  const bool sends = args.half != Half::kReceive, receives = args.half != Half::kSend;
  const bool in_place = outputs_in_place(args);
  if (sends && blockIdx.x == gridDim.x - 1) publish_outputs(args, in_place, epoch);
  // By a thread that has nothing to do yet.
  if (receives && threadIdx.x == kThreads - 1 && begins_last(&context.state->combine.begun))
    context.state->combine.epoch = epoch;
  __syncthreads();

  const bool in_first_half = sends && !in_place && blockIdx.x < args.plan.first_half_blocks;
  if (in_first_half && as_they_are) {
    if (role == 0) {
      ContributionLoader loader{{memory.forwarding, {}}};
      load_contributions<V>(args, epoch, pipeline, loader);
      loader.end();
    } else if (role == 1) {
      forward(memory.forwarding, args.plan.store_stages, epoch);
    }
    ptx::barrier_sync(1 + pipeline, kPipelineThreads);
  }
  if (role == 0) {
    ContributionLoader loader{{memory.reducing, {}}};
    if (in_first_half && !as_they_are) load_contributions<V>(args, epoch, pipeline, loader);
    if (receives) load_parts<V>(args, epoch, pipeline, memory.outputs, loader);
    loader.end();
  } else if (role <= reducers) {
    reduce<typename V::Type, typename V::Partial>(memory, {role - 1, reducers}, epoch);
  }
  if (!receives || !has_to_finish<V>(args, in_place, memory.outputs)) return;
  if (arrive_is_last(&context.state->combine.arrivals) && !has_failed(context))
    finish(args, in_place, epoch);
}

CombineGrid choose_grid(const CombineArgs& args, const Plan& plan) {
  if (never_sends_outputs(args)) return plan.combine_in_place;
  if (sends_rows_as_they_are(args.call)) return plan.combine_forward;
  return plan.combine_reduce[args.call.layout != hepLayoutFlat];
}

// Tokens are taken a few at a time: what they are made of is looked up together, which takes as long as adding up
// one more. A lane looks up a part, and no task reaches over the end of a chunk.
constexpr int kMaxTaskShift = 3;
static_assert(chunk_tokens(kFewTokens + 1) % (1 << kMaxTaskShift) == 0);

// Rows that are added up as they lie need little looking up: a pipeline has so many tasks at least. (2 H200s, flat,
// 512 tokens: with 64 pipelines 37.2 us, 39.0 with half as many tasks; with 32 pipelines 39.2, and 46.4 token
// by token.)
constexpr int kFewestRowTasks = 4;

// So that the pipeline that has most is done soonest. (2 H200s, expert-padded, 64 pipelines: 128 tokens take 23.5 us
// one by one, 22.5 by twos; 512 tokens 66, and 54 by eights.)
int choose_task_shift(const CombineArgs& args, int blocks) {
  int most = kMaxTaskShift;
  while (1 << most > kWarpSize / args.context.shape().max_partials()) --most;
  if (args.num_tokens > kFewTokens) return most;
  const int fewest_tasks = sends_rows_as_they_are(args.call) ? kFewestRowTasks : 1;
  int best = 0, least = INT_MAX;
  for (int shift = 0; shift <= most && 1 << shift <= chunk_tokens(args.num_tokens); ++shift) {
    const int tasks = ceil_div(args.num_tokens, kPipelines * blocks << shift);
    if (shift > 0 && tasks < fewest_tasks) break;
    const int time = tasks * ((1 << shift) + 1);
    if (time < least) best = shift;
    least = std::min(time, least);
  }
  return best;
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
auto find_kernel(const CombineCall& call) -> decltype(Instance::kernel) {
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
  args.plan.load_stages = plan.combine_load_stages > 0 ? plan.combine_load_stages : kMaxLoadStages;
  const CombineGrid grid = choose_grid(args, plan);
  args.plan.first_half_blocks = grid.first_half;
  const auto shared_bytes = [&] {
    return kPipelines * PipelineMemory::bytes(args.plan.load_stages, bytes);
  };
  while (shared_bytes() > kMaxDynamicSharedBytes) --args.plan.load_stages;
  args.plan.store_stages =
      std::min(plan.combine_store_stages > 0 ? plan.combine_store_stages : kDefaultStoreStages,
               args.plan.load_stages - 1);
  const int blocks = args.half == Half::kSend ? std::max(grid.first_half, 1) : grid.blocks;
  args.plan.task_shift = choose_task_shift(args, blocks);
  return launch(find_kernel(args.call), blocks, kThreads, shared_bytes(), stream, args);
}

}  // namespace hep::combine
