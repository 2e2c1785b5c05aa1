// SPDX-License-Identifier: Apache-2.0
#include "host/host_routing.h"

#include <algorithm>
#include <utility>

#include "data_type.h"
#include "host/host_backend.h"

namespace hep {

RoutingState::RoutingState(void* memory, const RoutingLayout& layout, int alignment)
    : alignment(alignment),
      tokens_per_expert(at<int32_t>(memory, layout.tokens_per_expert)),
      expert_offsets(at<int32_t>(memory, layout.expert_offsets)),
      totals(at<RoutingTotals>(memory, layout.totals)),
      source_tokens(at<uint32_t>(memory, layout.source_tokens)),
      source_rows(at<uint32_t>(memory, layout.source_rows)),
      chunk_rows(at<uint32_t>(memory, layout.chunk_rows)),
      partial_counts(at<uint8_t>(memory, layout.partial_counts)),
      rows(at<Row>(memory, layout.rows)),
      selections(at<Selection>(memory, layout.selections)),
      weights(at<float>(memory, layout.weights)) {}

HostRouting::HostRouting(HostBackend& backend, Memory memory, int alignment)
    : backend_(backend),
      memory_(std::move(memory)),
      state_(memory_.get(), backend.context().routing_layout, alignment) {}

Status HostRouting::update(const void* indices, int num_tokens, int top_k,
                           hepIndexType_t index_type, hepStream_t stream) {
  HEP_TRY(backend_.check_stream(stream));
  HEP_TRY(backend_.check_alive());
  return run_update(backend_.start(hepOperationRouting), {indices, index_type, num_tokens, top_k},
                    backend_, state_);
}

Status HostRouting::dispatch(const hepDispatchArgs_t& args, hepStream_t stream) {
  HEP_TRY(backend_.check_stream(stream));
  bool in_heap = false;
  if (args.quantize == hepQuantizeNone)
    HEP_TRY(find_rows_in_heap(backend_.context(), "x", args.x, state_.num_tokens,
                              backend_.context().shape.hidden * element_bytes(args.type),
                              &in_heap));
  HEP_TRY(backend_.check_alive());
  const Operation operation = backend_.start(hepOperationDispatch);
  HEP_TRY(run_dispatch(operation, args, in_heap, state_));
  const hepRowCounters_t& counters = state_.totals->row_counters;
  if (counters.overflow != 0 && args.overflow == hepOverflowError)
    backend_.note_overflow(operation.epoch(), counters.needed, args.capacity);
  return {};
}

Status HostRouting::combine(const hepCombineArgs_t& args, hepStream_t stream) {
  HEP_TRY(backend_.check_stream(stream));
  bool in_heap = false;  // makes no difference here, but a y that leaves the heap is refused
  HEP_TRY(find_outputs_in_heap(backend_.context(), args, &in_heap));
  HEP_TRY(backend_.check_alive());
  return run_combine(backend_.start(hepOperationCombine), args, state_);
}

Status HostRouting::query(hepRoutingCounts_t* counts, hepStream_t stream) {
  HEP_TRY(backend_.check_stream(stream));
  HEP_TRY(backend_.check_alive());
  const int num_experts = backend_.context().shape.num_local_experts();
  counts->num_flat_rows = state_.totals->num_flat_rows;
  counts->num_expert_rows = state_.totals->num_expert_rows;
  counts->num_padded_rows = state_.expert_offsets[num_experts];
  if (counts->tokens_per_expert != nullptr)
    std::copy_n(state_.tokens_per_expert, num_experts, counts->tokens_per_expert);
  return {};
}

}  // namespace hep
