// SPDX-License-Identifier: Apache-2.0
#include "backend/host/routing.h"

#include <algorithm>
#include <utility>

#include "backend/host/backend.h"
#include "backend/host/float_environment.h"
#include "protocol/at.h"
#include "protocol/data_type.h"
#include "protocol/records.h"
#include "protocol/routing_layout.h"

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

HostRouting::HostRouting(HostBackend& backend, HostLane& lane, Memory memory, int alignment)
    : backend_(backend),
      lane_(lane),
      memory_(std::move(memory)),
      state_(memory_.get(), lane.context.lane.routing_layout, alignment) {}

Status HostRouting::run_update(const TopK& choice, Step step) {
  const Operation operation = backend_.start(lane_, hepOperationRouting, step);
  return operation.run([&] {
    if (step != Step::kReceive) send_update(operation, choice, backend_, state_);
    return step != Step::kSend ? receive_update(operation, state_) : Status();
  });
}

Status HostRouting::update(const TopK& choice, hepStream_t stream) {
  HEP_TRY(backend_.check_stream(stream));
  HEP_TRY(backend_.check_alive());
  return run_update(choice, Step::kWhole);
}

// What the caller's batch is stands in the routing, too: its update was executed when it was called.
Status HostRouting::dispatch(const DispatchRequest& request, const Batch& batch, Step step,
                             hepStream_t stream) {
  HEP_TRY(backend_.check_stream(stream));
  const hepDispatchArgs_t& args = request.args;
  bool in_heap = false;
  if (args.quantize == hepQuantizeNone)
    HEP_TRY(find_rows_in_heap(lane_.context, "x", args.x, batch.num_tokens,
                              lane_.context.lane.shape.hidden * element_bytes(args.type),
                              &in_heap));
  HEP_TRY(backend_.check_alive());

  if (request.update) HEP_TRY(run_update(*request.update, step));
  const DefaultFloatEnvironment environment;
  const Operation operation = backend_.start(lane_, hepOperationDispatch, step);
  // A second half waits for the peers' first halves alone, so that one thread can be several ranks: x,
  // which is the caller's again then, is not read in place.
  const bool whole = step == Step::kWhole;
  HEP_TRY(operation.run([&]() -> Status {
    if (step != Step::kReceive)
      HEP_TRY(publish(operation, backend_.arithmetic(), args, in_heap && whole, state_));
    if (step == Step::kSend) return {};
    HEP_TRY(receive_rows(operation, args, state_));
    return whole ? wait_for_readers(operation, operation.epoch()) : Status();
  }));
  if (step == Step::kSend) return {};
  const hepRowCounters_t& counters = state_.totals->row_counters;
  if (counters.overflow != 0 && args.overflow == hepOverflowError)
    backend_.note_overflow({true, lane_.context.lane.mode, lane_.context.lane.number,
                            operation.epoch(), counters.needed, args.capacity});
  return {};
}

Status HostRouting::combine(const hepCombineArgs_t& args, const Batch&, Step step,
                            hepStream_t stream) {
  HEP_TRY(backend_.check_stream(stream));
  bool in_heap = false;  // makes no difference here, but a y that leaves the heap is refused
  HEP_TRY(find_outputs_in_heap(lane_.context, args, &in_heap));
  HEP_TRY(backend_.check_alive());
  const DefaultFloatEnvironment environment;
  const Operation operation = backend_.start(lane_, hepOperationCombine, step);
  return operation.run([&]() -> Status {
    if (step != Step::kReceive)
      HEP_TRY(send_partials(operation, backend_.arithmetic(), args, state_));
    return step != Step::kSend ? add_partials(operation, backend_.arithmetic(), args, state_)
                               : Status();
  });
}

Status HostRouting::query(hepRoutingCounts_t* counts, hepStream_t stream) {
  HEP_TRY(backend_.check_stream(stream));
  HEP_TRY(backend_.check_alive());
  const int num_experts = lane_.context.lane.shape.num_local_experts();
  counts->num_flat_rows = state_.totals->num_flat_rows;
  counts->num_expert_rows = state_.totals->num_expert_rows;
  counts->num_padded_rows = state_.expert_offsets[num_experts];
  if (counts->tokens_per_expert != nullptr)
    std::copy_n(state_.tokens_per_expert, num_experts, counts->tokens_per_expert);
  return {};
}

}  // namespace hep
