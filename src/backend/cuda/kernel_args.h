// SPDX-License-Identifier: Apache-2.0
// The arguments that the host passes to kernels, and the memory of the kernels' state.
#pragma once

#include <hybridep.h>

#include <cstdint>

#include "protocol/at.h"
#include "protocol/host_device.h"
#include "protocol/location.h"
#include "protocol/routing_layout.h"
#include "protocol/shape.h"
#include "protocol/signals.h"
#include "protocol/step.h"
#include "protocol/window_layout.h"

namespace hep {

// Device memory of one rank's lane, zero at first. Operations of one kind follow each other in
// stream order; their kernels advance the epochs, so that captured graphs replay.
struct DeviceState {
  struct Operation {
    uint64_t epoch;     // completed operations of this kind, or begun ones
    uint64_t begun;     // blocks that have read `epoch`, if it advances at the beginning
    uint64_t arrivals;  // blocks that have ended; both are 0 between operations
  };
  Operation dispatch, combine;
  uint64_t routing_epoch;
  uint32_t most_selections[2];  // of a token of this rank, by the update's parity; 0 before it

  uint64_t routing_counted;  // routing: blocks that have counted their tokens, over all operations
  uint64_t
      extras_published;  // dispatch: blocks that have published their share; 0 between operations

  uint64_t combine_tasks;  // combine: tasks of the second half that have been dealt out
};

// Device memory that all lanes share. Each flag goes 0 -> 1 once; whoever sets it writes the record
// in HostState.
struct FirstErrors {
  uint32_t failed;  // a wait has failed: later ones give up at once
  uint32_t bad_index, overflow;
};

// Host memory that kernels read and write.
struct HostState {
  uint64_t interrupt;             // host to device: not 0 once waits have to look at what follows
  uint32_t stop_result;           // hepResult_t: not hepSuccess: every wait ends with it
  uint32_t peer_left[kMaxRanks];  // not 0: the peer will signal nothing more

  int64_t bad_index_token, bad_index_k, bad_index_value;
  uint32_t
      bad_index_ready;  // device to host: what the first one that set FirstErrors wrote is complete
  uint32_t overflow_ready;               // the same of the first overflow that is an error
  int32_t overflow_mode, overflow_lane;  // as in hepFailure_t
  uint64_t overflow_number;
  int64_t overflow_needed, overflow_capacity;
  uint32_t failure_ready;  // device to host: `failure` is complete
  hepFailure_t failure;
};

// A lane of a communicator as kernels see it.
struct KernelContext {
  WindowLayout window_layout;
  RoutingLayout routing_layout;
  DeviceState* state;
  FirstErrors* firsts;
  HostState* host;
  uint32_t* block_counts;  // scratch of the routing kernel: see block_count_bytes()
  uint64_t timeout_ns;
  int32_t rank;
  int32_t mode, lane;        // as in hepFailure_t
  void* windows[kMaxRanks];  // the lane's parts
  void** registered;         // [kMaxRegistrations][R] where this rank sees what each has registered

  HEP_HOST_DEVICE const Shape& shape() const { return window_layout.shape; }
  HEP_HOST_DEVICE int num_ranks() const { return window_layout.shape.num_ranks; }
  HEP_HOST_DEVICE void* own_window() const { return windows[rank]; }

  // The slot in which `peer` tells this rank, and the one in which this rank tells `peer`.
  HEP_HOST_DEVICE Signals* signals_from(int peer) const {
    return at<Signals>(windows[rank], window_layout.signals_at(peer));
  }
  HEP_HOST_DEVICE Signals* signals_to(int peer) const {
    return at<Signals>(windows[peer], window_layout.signals_at(rank));
  }
};

struct MapArgs {
  DeviceState* state;
  FirstErrors* firsts;
  HostState* host;
  const uint8_t* map;  // [num_tokens][num_experts]
  int32_t* indices;    // [num_tokens][top_k]
  int32_t num_tokens;
  int32_t num_experts;
  int32_t top_k;
};

struct RouteArgs {
  KernelContext context;
  void* routing;  // memory of RoutingLayout
  uint64_t routing_number;
  const void* indices;  // [num_tokens][top_k]
  int32_t num_tokens;
  int32_t top_k;
  int32_t alignment;
  Step step;
};

struct QuantizeArgs {
  const void* x;  // [num_tokens][hidden] BF16
  void* rows;     // [num_tokens][hidden] E4M3
  void* scales;   // [num_tokens][scale_stride]
  uint64_t scale_stride;
  int32_t scale_bytes;
  int32_t num_tokens;
  int32_t hidden;
  int32_t quantize;  // hepQuantization_t
};

// The caller's arguments of a dispatch, as far as kernels use them: see hepDispatchArgs_t.
struct DispatchCall {
  int32_t layout, overflow, type, quantize, hidden;
  const void* x;
  const float* weights;  // [T][K], or [T][E]
  bool weights_are_dense;

  void* rows;
  int64_t capacity;
  float* row_weights;
  int32_t* row_experts;
  int32_t* row_sources;
  int32_t* row_tokens;
  int32_t* gather;
  int64_t gather_capacity;
  int32_t* expert_rows;
  int64_t* group_sizes;
  hepRowCounters_t* row_counters;

  const void* scales;
  void* row_scales;
  int64_t row_scales_stride;
  int32_t scale_element_bytes;
};

// Who publishes this rank's tokens.
enum class Publishing : int32_t {
  kDone,      // they lie in the heap, or an earlier kernel or copy has brought them to the window
  kCopies,    // the dispatch itself copies them to the window: low-latency mode
  kQuantizes  // the dispatch itself quantises them into the window: low-latency mode
};

// The rows that a rank dispatches.
struct DispatchedRows {
  uint64_t location;  // of this rank's rows; has no meaning if the kernel publishes them
  Publishing publishing;
  int32_t row_bytes;
};

// Every kernel that dispatches takes these.
struct DispatchArgs {
  KernelContext context;
  void* routing;
  uint64_t routing_number;
  int32_t num_tokens;
  int32_t top_k;
  int32_t alignment;
  Step step;
  DispatchedRows rows;
  DispatchCall call;
};

// How a block of dispatch.cu divides its shared memory.
struct PipelinePlan {
  int32_t pipelines;
  int32_t stages;          // of each
  int32_t rows_per_stage;  // in flat; otherwise 1
};

struct PipelineArgs : DispatchArgs {
  PipelinePlan plan;
};

// How a block of fused/update_and_dispatch.cu divides its shared memory.
struct UpdatePlan {
  int32_t stages;
  int32_t stage_scale_bytes;  // beside the row in a stage
};

// The arguments of a launch that updates the routing and dispatches.
struct UpdateArgs : DispatchArgs {
  const void* indices;  // [num_tokens][top_k]
  UpdatePlan plan;
};

// The caller's arguments of a combine, as far as kernels use them: see hepCombineArgs_t.
struct CombineCall {
  int32_t layout, weight_mode, type, partial_type, hidden;
  const void* y;
  int64_t capacity;
  const float* row_weights;
  void* out;
  const float* row_gradients;
  float* gradients;  // [T][K], or [T][E]
  bool gradients_are_dense;
};

// Whether each contribution is a partial sum by itself, so that it arrives unchanged. All ranks
// decide alike.
HEP_HOST_DEVICE inline bool sends_unmodified_rows(const CombineCall& call) {
  return call.layout == hepLayoutFlat && call.weight_mode == hepWeightsNone &&
         call.type == call.partial_type;
}

// The expert outputs of this rank that peers may read in place.
struct ReadableOutputs {
  uint64_t location;       // of y; or kNotInWindow
  int64_t most_sent_rows;  // if y has no more rows, they are sent all the same
};

struct CombinePlan {
  int32_t first_half_blocks;    // the first ones of the grid; all do the second half
  int32_t task_shift;           // 2^task_shift tokens are added up at a time
  int32_t pipelines, reducers;  // of a block; of a pipeline
  int32_t segment_bytes, partial_segment_bytes;  // of a row of y; of a partial sum
  int32_t load_stages, store_stages;
};

struct CombineArgs {
  KernelContext context;
  void* routing;
  uint64_t routing_number;
  int32_t num_tokens;
  int32_t top_k;
  Step step;
  int32_t row_bytes, partial_row_bytes;
  ReadableOutputs outputs;
  CombineCall call;
  CombinePlan plan;
};

// Whether peers read this rank's outputs in place, however few they are. Then there are no blocks
// to send any.
HEP_HOST_DEVICE inline bool never_sends_outputs(const CombineArgs& args) {
  return args.outputs.location != kNotInWindow && args.outputs.most_sent_rows == 0;
}

}  // namespace hep
