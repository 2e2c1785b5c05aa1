// SPDX-License-Identifier: Apache-2.0
// What the ranks of a dispatch on a cached routing tell each other: where rows lie, and when they,
// their weights and scales have been published.
#pragma once

#include "backend/cuda/blocks/dispatch.h"
#include "backend/cuda/kernels/common/executed_update.cuh"
#include "backend/cuda/kernels/common/grid.cuh"
#include "backend/cuda/kernels/common/published.cuh"
#include "backend/cuda/kernels/common/report.cuh"
#include "backend/cuda/kernels/common/wait.cuh"
#include "backend/cuda/kernels/dispatch/publish.cuh"
#include "protocol/at.h"
#include "protocol/records.h"
#include "protocol/signals.h"

namespace hep::dispatch {

__device__ inline uint64_t call_summary(const DispatchArgs& args) {
  return summary_of(args.call, args.num_tokens, executed_update(args).update);
}

constexpr int kExtrasBarrier = 1;

__device__ inline WorkShare extras_threads() {
  return {static_cast<int>(threadIdx.x) - kFirstExtrasWarp * kWarpSize, kExtrasThreads};
}
__device__ inline void sync_extras() { ptx::barrier_sync(kExtrasBarrier, kExtrasThreads); }

__device__ inline void signal_rows(const DispatchArgs& args, uint64_t epoch, uint64_t call,
                                   WorkShare threads) {
  for (int rank = threads.index; rank < args.context.num_ranks(); rank += threads.count) {
    RowsSignal& signal = args.context.signals_to(rank)->rows_of(epoch);
    ptx::st_relaxed_sys(&signal.location, rows_location(args, epoch));
    ptx::st_relaxed_sys(&signal.has_weights, args.call.weights != nullptr);
    ptx::st_relaxed_sys(&signal.has_scales, args.call.scales != nullptr);
    ptx::st_relaxed_sys(&signal.call, call);
    ptx::st_release_sys(&signal.ready, epoch);
  }
}

// Rows that lie where the peers read them are made known at once, by one block; all blocks bring
// the rest to the window, and the last to come signals. Nobody need be waited for: in throughput
// mode the dispatch before has waited for the readers, in low-latency mode dispatches take turns
// with two sets, and a peer that has signalled the one before this has done with the one before
// that. By the threads of a block that `sync` brings together: the extras warps, while the rows of
// peers that are ready are on their way. (By all warps before the rows, weights took 5 us of a
// dispatch of 4096 tokens with 8 blocks on an H200, FP32 scales 11 more.)
template <typename Sync>
__device__ void publish(const DispatchArgs& args, uint64_t epoch, uint64_t call, WorkShare threads,
                        Sync sync) {
  const KernelContext& context = args.context;
  const bool has_rows = args.rows.publishing != Publishing::kDone;
  const bool has_extras = args.call.weights != nullptr || args.call.scales != nullptr;
  if (!has_rows && !has_extras) return;
  const TokenRange tokens = tokens_to_publish(args);
  if (args.call.weights != nullptr) publish_weights(args, epoch, tokens, threads);
  if (args.call.scales != nullptr) publish_scales(args, epoch, tokens, threads);
  if (has_rows) publish_rows(args, epoch, tokens, threads);
  if (!is_last_to_arrive(&context.state->extras_published, threads.index == 0, sync)) return;
  if (has_rows) signal_rows(args, epoch, call, threads);
  if (has_extras)
    for (int rank = threads.index; rank < context.num_ranks(); rank += threads.count)
      ptx::st_release_sys(&context.signals_to(rank)->rows_of(epoch).weights_ready, epoch);
}

// Where the rows of each source lie; waits for them when they are first needed.
struct SourceGate {
  const DispatchArgs& args;
  uint64_t epoch, call;
  const char** published;  // [R] in shared memory, NULL at first; read by lane 0 alone

  // By all lanes of a warp; NULL after a failure.
  __device__ const char* rows_of(int source) const {
    uint64_t rows = warp_lane() == 0 ? reinterpret_cast<uint64_t>(published[source]) : 0;
    rows = __shfl_sync(kFullWarp, rows, 0);
    if (rows != 0) return reinterpret_cast<const char*>(rows);
    if (warp_lane() == 0) rows = reinterpret_cast<uint64_t>(wait_for_rows(source));
    return reinterpret_cast<const char*>(__shfl_sync(kFullWarp, rows, 0));
  }

 private:
  __device__ const char* wait_for_rows(int source) const {
    const KernelContext& context = args.context;
    const RowsSignal& signal = context.signals_from(source)->rows_of(epoch);
    const WaitPoint point{hepOperationDispatch, hepPhaseRows, source, epoch};
    if (!wait_for(context, point, &signal.ready, epoch) ||
        !agrees(context, point, &signal.call, call))
      return nullptr;
    // The copy engine reads what the source wrote by other means.
    ptx::fence_proxy_async();
    published[source] = published_at(context, source, ptx::ld_relaxed_sys(&signal.location));
    return published[source];
  }
};

// What the sources have published beside their rows.
struct PublishedExtras {
  const DispatchArgs& args;
  uint64_t epoch;
  uint8_t* gave_weights;  // [R] in shared memory

  // Waits for all of it. All sources must have called dispatch alike, also those without rows for
  // this rank. By all extras warps of a block; `failed` is in shared memory.
  __device__ bool wait(uint64_t call, bool* failed) const {
    const KernelContext& context = args.context;
    const WorkShare threads = extras_threads();
    if (threads.index == 0) *failed = false;
    sync_extras();
    for (int source = threads.index; source < context.num_ranks(); source += threads.count) {
      const RowsSignal& signal = context.signals_from(source)->rows_of(epoch);
      const WaitPoint point{hepOperationDispatch, hepPhaseRows, source, epoch};
      bool ready = wait_for(context, point, &signal.ready, epoch) &&
                   agrees(context, point, &signal.call, call);
      gave_weights[source] = ready && ptx::ld_relaxed_sys(&signal.has_weights) != 0;
      if (ready && (gave_weights[source] || ptx::ld_relaxed_sys(&signal.has_scales) != 0))
        ready = wait_for(context, {hepOperationDispatch, hepPhaseWeights, source, epoch},
                         &signal.weights_ready, epoch);
      if (!ready) *failed = true;
    }
    sync_extras();
    return !*failed;
  }

  __device__ bool forwards_scales() const { return true; }
  __device__ bool has_weights(int source) const { return gave_weights[source]; }
  __device__ float weight(const Row& row, int k) const {
    if (!has_weights(row.source)) return 1.0f;
    return __ldcg(at<float>(args.context.windows[row.source],
                            args.context.window_layout.weights_at(epoch, row.token, args.top_k)) +
                  k);
  }
  __device__ const char* scales(const Row& row) const {
    return published_scales(args.context, row.source, epoch, row.token);
  }
};

}  // namespace hep::dispatch
