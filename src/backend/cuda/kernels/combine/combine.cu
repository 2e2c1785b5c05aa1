// SPDX-License-Identifier: Apache-2.0
// Combine: reduce, push, add. Some blocks begin by summing this rank's rows of each token and
// pushing the partial sum into a slot of the token's rank; all, these too when they are done, add
// up the slots of this rank's tokens. Both halves sum rows that lie at addresses, so both are the
// same: a loader warp that knows which rows, and reducer warps that know nothing but the ring.
//
// A block has several independent pipelines: while one waits, the others compute. The shorter the
// rows, the fewer reducers a row needs, and the more pipelines there are.
//
// Where no row is added to another, in flat without weights, the first half needs no reducers: a
// forwarder sends the rows as they are. Those that the second half can read where they lie, because
// they are this rank's own or in a window, are loaded from there, in place of partial sums.
#include "backend/cuda/kernels/combine/forward.cuh"
#include "backend/cuda/kernels/combine/receive.cuh"
#include "backend/cuda/kernels/combine/reduce.cuh"
#include "backend/cuda/kernels/combine/send.cuh"
#include "backend/cuda/kernels/common/grid.cuh"
#include "backend/cuda/kernels/common/report.cuh"
#include "backend/cuda/kernels/common/token_group.cuh"
#include "backend/cuda/kernels/common/wait.cuh"
#include "backend/cuda/launch.h"
#include "protocol/at.h"
#include "protocol/shape.h"

namespace hep::combine {
namespace {

// Gradients of the weights that a thread has on their way at once.
constexpr int kGradientsAtOnce = 8;

// Adds up a token's gradients of one expert, in ascending k, and puts them there. A lane has a
// selection; by all lanes.
__device__ void put_dense_gradient(const CombineArgs& args, const SelectionWarpLanes& lanes,
                                   int token, int expert, float gradient) {
  const uint32_t same = __match_any_sync(kFullWarp, expert) & lanes.of_group;
  float sum = gradient;
  if (__any_sync(kFullWarp, expert != kNone && same != 1u << warp_lane()))
    for (int k = 1; k < args.top_k; ++k) {
      const int other = lanes.group * args.top_k + k;
      const float added = __shfl_sync(kFullWarp, gradient, other);
      if (other > warp_lane() && (same >> other & 1)) sum += added;
    }
  if (expert == kNone || (same & warp_lanes_below()) != 0) return;
  args.call.gradients[static_cast<int64_t>(token) * args.context.shape().num_experts + expert] =
      sum;
}

// By all threads of a block.
__device__ void take_dense_gradients(const CombineArgs& args, float* sent) {
  const uint16_t* experts = routing_of(args).own_experts();
  const SelectionWarpLanes lanes(args.top_k);
  struct Loaded {
    float gradient;
    int expert;
  };
  const auto selection_of = [&](int first) {
    const bool valid = lanes.group < lanes.groups && first + lanes.group < args.num_tokens;
    return valid ? first * args.top_k + warp_lane() : kNone;
  };
  for_each_loaded<kGradientsAtOnce>(
      warp_index() * lanes.groups, blockDim.x / kWarpSize * lanes.groups, args.num_tokens,
      [&](uint32_t first) {
        const int i = selection_of(first);
        if (i == kNone) return Loaded{0.0f, kNone};
        const uint16_t expert = experts[i];
        return Loaded{__ldcg(sent + i), expert != kNoExpert ? expert : kNone};
      },
      [&](uint32_t first, const Loaded& loaded) {
        const int i = selection_of(first);
        if (i != kNone) sent[i] = 0.0f;
        put_dense_gradient(args, lanes, first + lanes.group, loaded.expert, loaded.gradient);
      });
}

// Takes what the ranks have sent, and leaves zeros. By all threads of a block.
__device__ void take_gradients(const CombineArgs& args, uint64_t epoch) {
  if (args.call.gradients == nullptr) return;
  const KernelContext& context = args.context;
  float* sent =
      at<float>(context.own_window(), context.window_layout.gradients_at(epoch, 0, args.top_k));
  if (args.call.gradients_are_dense) {
    take_dense_gradients(args, sent);
    __syncthreads();
    return;
  }
  for_each_loaded<kGradientsAtOnce>(
      threadIdx.x, blockDim.x, args.num_tokens * args.top_k,
      [&](uint32_t i) { return __ldcg(sent + i); },
      [&](uint32_t i, float gradient) {
        args.call.gradients[i] = gradient;
        sent[i] = 0.0f;
      });
  __syncthreads();
}

// In the last block: all that this rank needs has been added up, and calls have been compared: the
// peers may overwrite it. Waits until they have read this rank's outputs, if they do.
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

// Whether this rank must signal and wait at the end. It need not with double-buffered slots, few
// tokens, no gradients, and nobody who reads outputs in place. `outputs` is complete once all
// threads of the block are done.
template <typename V>
__device__ bool has_to_finish(const CombineArgs& args, bool in_place, const Outputs* outputs) {
  const KernelContext& context = args.context;
  if (context.shape().sets != 2 || args.num_tokens > kFewTokens || args.call.gradients != nullptr ||
      in_place)
    return true;
  if (!V::unmodified(args)) return false;
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

  const CombinePlan& plan = args.plan;
  // The loaders are the first warps of the block: so they lie on all quarters of the SM.
  const bool loads = warp_index() < plan.pipelines;
  const int reducer = warp_index() - plan.pipelines;
  const int pipeline = loads ? warp_index() : reducer / plan.reducers;
  const int role = loads ? 0 : 1 + reducer % plan.reducers;
  const int bytes = max(plan.segment_bytes, plan.partial_segment_bytes);
  const PipelineMemory memory(shared + pipeline * pipeline_bytes(plan.load_stages, bytes),
                              plan.load_stages, bytes);
  // A NaN that arrives as it is becomes canonical when it is added up.
  const bool unmodified = V::unmodified(args);
  memory.initialize(role, plan.reducers, unmodified);
  const bool sends = args.step != Step::kReceive, receives = args.step != Step::kSend;
  const bool in_place = outputs_in_place(args);
  if (sends && blockIdx.x == gridDim.x - 1) publish_outputs(args, in_place, epoch);
  // By a thread that has nothing to do yet.
  if (receives && threadIdx.x == blockDim.x - 1 && is_last_to_begin(&context.state->combine.begun))
    context.state->combine.epoch = epoch;
  __syncthreads();

  const bool in_first_half = sends && !in_place && blockIdx.x < plan.first_half_blocks;
  if (in_first_half && unmodified) {
    if (role == 0) {
      ContributionLoader loader{{memory.forwarding, {}}};
      load_contributions<V>(args, epoch, pipeline, loader);
      loader.end();
    } else if (role == 1) {
      forward(memory.forwarding, plan.store_stages, epoch);
    }
    ptx::barrier_sync(1 + pipeline, warps_of_pipeline(plan.reducers) * kWarpSize);
  }
  if (role == 0) {
    ContributionLoader loader{{memory.reducing, {}}};
    if (in_first_half && !unmodified) load_contributions<V>(args, epoch, pipeline, loader);
    if (receives) load_parts<V>(args, epoch, pipeline, memory.outputs, loader);
    loader.end();
  } else {
    reduce<typename V::Type, typename V::Partial>(memory, {role - 1, plan.reducers}, epoch);
  }
  if (!receives || !has_to_finish<V>(args, in_place, memory.outputs)) return;
  if (is_last_to_arrive(&context.state->combine.arrivals) && !has_failed(context))
    finish(args, in_place, epoch);
}

// BF16 has a kernel for each layout; the others ask at run time.
using Bf16 = __nv_bfloat16;
constexpr int32_t kBf16 = hepTypeBfloat16, kFp16 = hepTypeFloat16, kFp32 = hepTypeFloat32;
constexpr KernelTable<CombineArgs, 8> kKernels{{
    {{hepLayoutFlat, kAny, kBf16, kBf16}, combine_kernel<Variant<Bf16, Bf16, hepLayoutFlat>>},
    {{hepLayoutExpertMajor, kAny, kBf16, kBf16},
     combine_kernel<Variant<Bf16, Bf16, hepLayoutExpertMajor>>},
    {{hepLayoutExpertPadded, kAny, kBf16, kBf16},
     combine_kernel<Variant<Bf16, Bf16, hepLayoutExpertPadded>>},
    {{kAny, kAny, kBf16, kFp32}, combine_kernel<Variant<Bf16, float, kAnyLayout>>},
    {{kAny, kAny, kFp16, kBf16}, combine_kernel<Variant<__half, Bf16, kAnyLayout>>},
    {{kAny, kAny, kFp16, kFp32}, combine_kernel<Variant<__half, float, kAnyLayout>>},
    {{kAny, kAny, kFp32, kBf16}, combine_kernel<Variant<float, Bf16, kAnyLayout>>},
    {{kAny, kAny, kFp32, kFp32}, combine_kernel<Variant<float, float, kAnyLayout>>},
}};
static_assert(kKernels.serves_all_layouts({kAny, kAny, kBf16, kBf16}) &&
              kKernels.serves_all_layouts({kAny, kAny, kBf16, kFp32}) &&
              kKernels.serves_all_layouts({kAny, kAny, kFp16, kBf16}) &&
              kKernels.serves_all_layouts({kAny, kAny, kFp16, kFp32}) &&
              kKernels.serves_all_layouts({kAny, kAny, kFp32, kBf16}) &&
              kKernels.serves_all_layouts({kAny, kAny, kFp32, kFp32}));

}  // namespace

cudaError_t prepare_combine() { return kKernels.prepare(); }

cudaError_t launch_combine(CombineArgs args, const Plan& plan, cudaStream_t stream) {
  const Grid grid = plan_combine(plan, &args);
  const CombineCall& call = args.call;
  return kKernels.launch({call.layout, kAny, call.type, call.partial_type}, grid, stream, args);
}

}  // namespace hep::combine
