// SPDX-License-Identifier: Apache-2.0
// The routing update: every rank sends each peer the records of the tokens that go there, and turns
// the records that it receives into places. One launch, no host, no all-gather.
//
// A warp owns a run of consecutive tokens. It counts them; prefix sums over the warps and blocks
// give it the index of its first row and selection in every destination and expert; it then writes
// its records straight into the destinations' windows. What bounds an update is latency, not bytes:
// every step loads what it needs at once, and a lane has one selection.
#include "backend/cuda/kernels/common/executed_update.cuh"
#include "backend/cuda/kernels/common/grid.cuh"
#include "backend/cuda/kernels/common/report.cuh"
#include "backend/cuda/kernels/route/receive.cuh"
#include "backend/cuda/kernels/route/send.cuh"
#include "backend/cuda/launch.h"
#include "protocol/shape.h"

namespace hep::route {
namespace {

// The sending half, by all threads of all blocks. Returns the epoch; 0 after a failure.
template <typename Index>
__device__ uint64_t send(const RouteArgs& args, void* shared) {
  const KernelContext& context = args.context;
  const SendMemory sending(shared, context.shape(), blockDim.x / kWarpSize);
  const TokenRange range = tokens_of_warp(args);
  const int first_expert =
      expert_of_warp_lane<Index>(args, SelectionWarpLanes(args.top_k), range.begin, range.end);
  const uint64_t epoch = context.state->routing_epoch + 1;
  if (__syncthreads_or(has_failed(context))) return 0;

  const uint32_t most = count_tokens<Index>(
      args, range, first_expert, sending.counters + warp_index() * num_counters(context.shape()));
  if (warp_lane() == 0 && most > 0)
    ptx::atomic_max_relaxed_gpu(&context.state->most_selections[epoch & 1], most);
  __syncthreads();
  const bool few_counters = num_counters(context.shape()) * kLanesOfCounter <= blockDim.x;
  if (few_counters)
    sum_over_warps<kLanesOfCounter>(args, sending);
  else
    sum_over_warps<1>(args, sending);
  // All of them have begun then, and know the epoch.
  if (!wait_for_grid(context, {hepOperationRouting, hepPhaseBlocks, context.rank, epoch},
                     &context.state->routing_counted))
    return 0;
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    context.state->routing_epoch = epoch;
    context.state->most_selections[(epoch + 1) & 1] = 0;
    note_update(args, epoch);
  }
  if (few_counters)
    sum_over_blocks<kLanesOfCounter>(args, sending);
  else
    sum_over_blocks<1>(args, sending);
  send_headers(args, sending, epoch);
  send_records<Index>(args, range, first_expert, sending, epoch);
  signal_records(args, epoch);
  return epoch;
}

// The epoch of which the sending half was a kernel before; 0 after a failure.
__device__ uint64_t sent_epoch(const RouteArgs& args) {
  return __syncthreads_or(has_failed(args.context)) ? 0 : args.context.state->routing_epoch;
}

template <typename Index>
__global__ void __launch_bounds__(kMaxThreads)
    route_kernel(const __grid_constant__ RouteArgs args) {
  extern __shared__ uint4 shared[];
  const KernelContext& context = args.context;
  const uint64_t epoch = args.step == Step::kReceive ? sent_epoch(args) : send<Index>(args, shared);
  if (epoch == 0 || args.step == Step::kSend) return;

  if (!wait_for_records(args, epoch)) return;
  const ReceiveMemory receiving(shared, context.shape());
  receive_records(args, receiving, epoch);
}

constexpr KernelTable<RouteArgs, 2> kKernels{{
    {{kAny, hepIndexInt32}, route_kernel<int32_t>},
    {{kAny, hepIndexInt64}, route_kernel<int64_t>},
}};
static_assert(kKernels.find({kAny, hepIndexInt32}) == 0 &&
              kKernels.find({kAny, hepIndexInt64}) == 1);

}  // namespace

cudaError_t prepare_route() { return kKernels.prepare(); }

cudaError_t launch_route(const RouteArgs& args, int32_t index_type, const Plan& plan,
                         cudaStream_t stream) {
  return kKernels.launch({kAny, index_type}, plan_route(plan, args.context.shape()), stream, args);
}

}  // namespace hep::route
