// SPDX-License-Identifier: Apache-2.0
// The second half of combine: what all ranks sent for this rank's tokens.
#pragma once

#include "cuda/kernels/combine_outputs.cuh"
#include "cuda/kernels/combine_rows.cuh"

namespace hep {

// Tokens of a task of the second half; the tasks are few, and the last to end should be short.
constexpr int kTokensPerTask = 8;
static_assert(kChunkTokens % kTokensPerTask == 0);

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

__device__ inline TokenParts look_up(const CombineArgs& args, int token) {
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
__device__ inline bool wait_for_partials(const CombineArgs& args, uint64_t epoch, int chunk,
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
__device__ inline const char* part_at(const CombineArgs& args, const TokenParts& parts,
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

}  // namespace hep
