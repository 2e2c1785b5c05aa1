// SPDX-License-Identifier: Apache-2.0
// The second half of combine: what all ranks sent for this rank's tokens.
#pragma once

#include "backend/cuda/kernels/combine/outputs.cuh"
#include "backend/cuda/kernels/combine/rows.cuh"
#include "backend/cuda/kernels/common/bit_cast.cuh"
#include "backend/cuda/kernels/common/routing_view.cuh"
#include "backend/cuda/kernels/common/wait.cuh"
#include "protocol/at.h"
#include "protocol/records.h"
#include "protocol/routing_layout.h"
#include "protocol/shape.h"

namespace hep::combine {

constexpr int kFewTokens = kCompiledProfile.few_tokens;

struct TokenTask {
  int first, end;  // tokens; none: first >= end
};

// This rank's tokens in ascending order, dealt out to whichever pipeline asks, or, if they are few,
// to all in turn: no token's result depends on who adds it up. By one warp; the next task is asked
// for early.
struct TokenTasks {
  const CombineArgs& args;
  int slot, token;  // of the lane in a task: a part for each; past the last token, there is none
  uint64_t task;    // the next; in lane 0

  // Few tokens begin with the pipelines that the chunks of the first half come to last.
  __device__ TokenTasks(const CombineArgs& combine, int pipeline)
      : args(combine), task((args.plan.pipelines - 1 - pipeline) * gridDim.x + blockIdx.x) {
    const int slots = args.context.shape().max_partials();
    token = Divisor(slots)(warp_lane());
    slot = warp_lane() - token * slots;
    if (args.num_tokens > kFewTokens) draw();
  }

  // By all lanes.
  __device__ TokenTask next() {
    const uint64_t mine = __shfl_sync(kFullWarp, task, 0);
    if (mine << args.plan.task_shift >= args.num_tokens) return {0, 0};
    draw();
    const int first = static_cast<int>(mine) << args.plan.task_shift;
    return {first, min(first + (1 << args.plan.task_shift), args.num_tokens)};
  }

 private:
  __device__ void draw() {
    if (args.num_tokens <= kFewTokens)
      task += args.plan.pipelines * gridDim.x;
    else if (warp_lane() == 0)
      task = ptx::atomic_add_relaxed_gpu(&args.context.state->combine_tasks, 1);
  }
};

// What the sums of a task's tokens are made of: one part a lane, those of a token side by side. A
// part is what a peer sent or holds, or this rank's own outputs. Looked up in steps, each of which
// needs what the step before has loaded, and comes a task later.
template <typename V>
struct TokenParts {
  TokenTask task{0, 0};
  int token = 0;  // of the lane
  int slot = 0;   // of the lane among the token's
  int count = 0;  // parts of the token
  SentRow sent{0, 0};
  bool own = false;  // this rank's own outputs are added up where they lie:
  uint32_t own_index = 0;
  uint4 own_record{};

  __device__ bool is_part() const { return slot < count; }
  // A token that selected nothing has one part that is nothing.
  __device__ bool has_items() const { return is_part() || (token < task.end && slot == 0); }

  __device__ void look_up(const CombineArgs& args, TokenTasks& tasks) {
    const int slots = args.context.shape().max_partials();
    task = tasks.next();
    slot = tasks.slot;
    token = warp_lane() + slots <= kWarpSize + slot ? task.first + tasks.token : task.end;
    count = 0;
    if (token >= task.end) return;
    count = routing_of(args).partial_counts()[token];
    sent = routing_of(args).sent_rows()[token * slots + slot];
  }

  // `first_own`: this rank's first row for its own tokens.
  __device__ void find_own(const CombineArgs& args, uint32_t first_own) {
    own = V::kOwnInPlace && !V::unmodified(args) && is_part() && sent.rank == args.context.rank;
    if (!own) return;
    own_index = first_own + sent.index;
    own_record = routing_of(args).row_words()[own_index];
  }
};

// Waits until every rank that sends partial sums has sent those of a chunk. `outputs` NULL: all
// send, but perhaps this one.
template <typename V>
__device__ bool wait_for_partials(const CombineArgs& args, uint64_t epoch, int chunk,
                                  const Outputs* outputs) {
  const KernelContext& context = args.context;
  bool here = true;
  for (int rank = warp_lane(); rank < context.num_ranks(); rank += kWarpSize) {
    if (V::kOwnInPlace && rank == context.rank) continue;
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

// A part that is not this rank's own: an output in place, NULL if it was dropped there, or a
// partial sum.
template <typename V>
__device__ const char* part_at(const CombineArgs& args, uint64_t epoch, const TokenParts<V>& parts,
                               const Outputs* outputs) {
  const KernelContext& context = args.context;
  if (!parts.is_part()) return nullptr;
  if (outputs != nullptr && outputs[parts.sent.rank].in_place) {
    const Outputs& from = outputs[parts.sent.rank];
    if (parts.sent.index >= from.num_rows) return nullptr;
    return from.rows + int64_t{parts.sent.index} * args.row_bytes;
  }
  return at<char>(context.own_window(),
                  context.window_layout.partial_at(epoch, parts.token, parts.slot));
}

// Loads what is added up to a task's tokens, once wait() has returned true: it is asked when all
// that can be found out beforehand is known. False if it returns false.
template <typename V, typename Wait>
__device__ bool load_task(const CombineArgs& args, uint64_t epoch, const TokenParts<V>& parts,
                          const Outputs* outputs, ContributionLoader& loader, Wait wait) {
  const int slots = args.context.shape().max_partials();
  const auto part = reinterpret_cast<uint64_t>(part_at(args, epoch, parts, outputs));
  uint32_t num_items = parts.has_items();
  if (parts.own) num_items = rows_of<V>(args, bit_cast<Row>(parts.own_record));
  const EntryItems entries(num_items);
  const int num_lanes = (parts.task.end - parts.task.first) * slots;
  for (int first = 0, last; first < num_lanes; first = last) {
    last = entries.end_of_batch(first, slots, num_lanes);
    const EntryItems::Batch items = entries.batch(first, last);
    const bool own = __shfl_sync(kFullWarp, parts.own, items.entry);
    const Row row = row_of_warp_lane(parts.own_record, items.entry);
    const uint32_t own_index = __shfl_sync(kFullWarp, parts.own_index, items.entry);
    const int token = __shfl_sync(kFullWarp, parts.token, items.entry);
    OutputRow output{reinterpret_cast<const char*>(__shfl_sync(kFullWarp, part, items.entry)),
                     1.0f};
    if (own && items.siblings != 0) output = find_output<V>(args, row, own_index, items.index);

    // A part that was dropped elsewhere counts as +0, like this rank's own if all its rows were
    // dropped.
    const uint32_t active = contributing_warp_lanes(items, output.address);
    const uint32_t of_token = __match_any_sync(kFullWarp, token);
    uint16_t flags = V::kOneType ? 0 : kPartials;
    if (own && output.address != nullptr) {
      flags |= kOwn;
      if ((active & items.siblings & warp_lanes_above()) == 0) flags |= kEndsPartial;
    }
    if ((active & of_token & warp_lanes_above()) == 0) flags |= kLast;
    char* sum = static_cast<char*>(args.call.out) + int64_t{token} * args.row_bytes;
    if (!wait()) return false;
    load_sums<typename V::Partial, typename V::Type>(
        loader, args.partial_row_bytes, args.plan.partial_segment_bytes,
        {active, of_token, output.address, output.weight, sum, flags});
  }
  return true;
}

template <typename V>
__device__ void load_parts(const CombineArgs& args, uint64_t epoch, int pipeline, Outputs* outputs,
                           ContributionLoader& loader) {
  TokenTasks tasks(args, pipeline);
  TokenParts<V> next, second;
  const uint32_t first_own = routing_of(args).source_rows()[args.context.rank];
  next.look_up(args, tasks);
  second.look_up(args, tasks);
  next.find_own(args, first_own);
  if (V::unmodified(args)) {
    if (!find_all_outputs(args, epoch, outputs)) return;
  } else {
    outputs = nullptr;
    // By one of those that have the least to do.
    const bool is_last = pipeline == args.plan.pipelines - 1 && blockIdx.x == gridDim.x - 1;
    if (is_last && !all_calls_alike(args, epoch)) return;
  }

  const int shift = chunk_shift(args.num_tokens, args.context.num_ranks());
  int ready_chunk = -1;
  while (next.task.first < next.task.end) {
    const TokenParts<V> current = next;
    next = second;
    next.find_own(args, first_own);
    second.look_up(args, tasks);
    const auto wait = [&, chunk = current.task.first >> shift] {
      if (chunk != ready_chunk && !wait_for_partials<V>(args, epoch, chunk, outputs)) return false;
      ready_chunk = chunk;
      return true;
    };
    if (!load_task(args, epoch, current, outputs, loader, wait)) return;
  }
}

}  // namespace hep::combine
