// SPDX-License-Identifier: Apache-2.0
// Gradients of the weights on their way back, in a kernel of its own before that of combine: each
// goes to the window of its token's rank, which takes them when its combine ends. The signals of
// combine tell that they are there. All blocks clear dense gradients meanwhile, which one alone
// would be slow to do.
#include "backend/cuda/blocks/combine.h"
#include "backend/cuda/kernels/common/executed_update.cuh"
#include "backend/cuda/kernels/common/routing_view.cuh"
#include "backend/cuda/kernels/common/wait.cuh"
#include "backend/cuda/kernels/common/warp.cuh"
#include "backend/cuda/launch.h"
#include "protocol/at.h"
#include "protocol/output_layout.h"
#include "protocol/records.h"

namespace hep::combine {
namespace {

// Waits until all ranks have taken the gradients of the last combine, unless combines take turns
// with two sets. By all threads of a block.
__device__ bool wait_for_takers(const CombineArgs& args, uint64_t epoch) {
  const KernelContext& context = args.context;
  if (context.shape().sets == 2) return true;
  bool taken = true;
  for (int rank = threadIdx.x; rank < context.num_ranks(); rank += blockDim.x)
    taken &= wait_for(context, {hepOperationCombine, hepPhaseSlots, rank, epoch},
                      &context.signals_from(rank)->slots_free, epoch - 1);
  return __syncthreads_and(taken);
}

__device__ void send_gradient(const CombineArgs& args, uint64_t epoch, uint32_t index,
                              const Row& row, const Selection& selection) {
  const KernelContext& context = args.context;
  const CombineCall& call = args.call;
  int64_t entry;
  if (call.layout == hepLayoutFlat) {
    if (index >= call.capacity) return;
    entry = static_cast<int64_t>(index) * args.top_k + selection.k;
  } else {
    entry = row_of_selection(call.layout, call.capacity, context.routing_layout.num_experts,
                             routing_of(args).expert_offsets(), selection);
    if (entry == kDropped) return;
  }
  at<float>(context.windows[row.source],
            context.window_layout.gradients_at(epoch, row.token, args.top_k))[selection.k] =
      call.row_gradients[entry];
}

// Those that are dense are 0 but where combine puts what has been sent. By all threads.
__device__ void clear_dense_gradients(const CombineArgs& args) {
  const CombineCall& call = args.call;
  if (!call.gradients_are_dense) return;
  const int64_t count = int64_t{args.num_tokens} * args.context.shape().num_experts;
  const int64_t threads = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += threads)
    call.gradients[i] = 0.0f;
}

// A lane has a selection.
__global__ void __launch_bounds__(kGradientThreads)
    send_gradients_kernel(const __grid_constant__ CombineArgs args) {
  const KernelContext& context = args.context;
  const uint64_t epoch = context.state->combine.epoch + 1;
  if (!may_begin(args, hepOperationCombine, epoch)) return;
  clear_dense_gradients(args);
  if (!wait_for_takers(args, epoch)) return;

  const SelectionWarpLanes lanes(args.top_k);
  const uint32_t num_rows = routing_of(args).source_rows()[context.num_ranks()];
  const uint32_t warps = gridDim.x * (kGradientThreads / kWarpSize);
  const uint32_t warp = warp_index() * gridDim.x + blockIdx.x;
  for (uint32_t first = warp * lanes.groups; first < num_rows; first += warps * lanes.groups) {
    const uint32_t index = first + lanes.group;
    if (lanes.group >= lanes.groups || index >= num_rows) continue;
    const Row row = routing_of(args).rows()[index];
    if (lanes.index >= row.count) continue;
    send_gradient(args, epoch, index, row, routing_of(args).selections()[row.first + lanes.index]);
  }
  ptx::fence_acq_rel_sys();
}

constexpr KernelTable<CombineArgs, 1> kKernels{{{{}, send_gradients_kernel}}};

}  // namespace

cudaError_t prepare_gradients() { return kKernels.prepare(); }

cudaError_t launch_send_gradients(const CombineArgs& args, const Plan& plan, cudaStream_t stream) {
  return kKernels.launch({}, plan_gradients(plan, args), stream, args);
}

}  // namespace hep::combine
