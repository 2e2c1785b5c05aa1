// SPDX-License-Identifier: Apache-2.0
#include "backend/host/routing.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "backend/host/backend.h"
#include "backend/host/float_environment.h"
#include "backend/host/pack.h"
#include "backend/host/relay.h"
#include "protocol/at.h"
#include "protocol/data_type.h"
#include "protocol/records.h"
#include "protocol/routing_layout.h"

namespace hep {

HostRoutingState::HostRoutingState(void* memory, const RoutingRequest& request, int most_parts)
    : alignment(request.alignment),
      max_tokens(request.layout.max_tokens),
      max_top_k(request.layout.max_top_k),
      tokens_per_expert(at<int32_t>(memory, request.layout.tokens_per_expert)),
      expert_offsets(at<int32_t>(memory, request.layout.expert_offsets)),
      totals(at<RoutingTotals>(memory, request.layout.totals)),
      source_tokens(at<uint32_t>(memory, request.layout.source_tokens)),
      source_rows(at<uint32_t>(memory, request.layout.source_rows)),
      chunk_rows(at<uint32_t>(memory, request.layout.chunk_rows)),
      own_experts(at<uint16_t>(memory, request.layout.own_experts)),
      partial_counts(at<uint8_t>(memory, request.layout.partial_counts)),
      rows(at<Row>(memory, request.layout.rows)),
      selections(at<Selection>(memory, request.layout.selections)),
      weights(at<float>(memory, request.layout.weights)),
      part_rows(at<uint32_t>(memory, request.network.part_rows)),
      first_parts(at<uint32_t>(memory, request.network.first_parts)),
      part_tokens(at<uint16_t>(memory, request.network.part_tokens)),
      part_counts(at<uint8_t>(memory, request.network.part_counts)),
      token_parts(at<RemotePart>(memory, request.network.token_parts)),
      source_domain_rows(at<uint32_t>(memory, request.network.source_rows)),
      rail_first_parts(at<uint32_t>(memory, request.network.rail_first_parts)),
      rail_ranks(at<uint8_t>(memory, request.network.rail_ranks)),
      max_parts(most_parts) {}

HostRouting::HostRouting(HostBackend& backend, HostLane& lane, const RoutingRequest& request,
                         Memory own)
    : backend_(backend),
      lane_(lane),
      own_(std::move(own)),
      memory_(own_ ? own_.get() : request.memory),
      state_(memory_, request, lane.context.lane.network_layout.max_parts) {}

HostRouting::~HostRouting() {
  if (lane_.relays) lane_.relays->cancel(state_);  // between the halves of a combine
}

// A first half waits for no peer's second half. The rings must therefore hold its batch beside the
// one before.
Status HostRouting::check_halves(Step step) const {
  const Lane& lane = lane_.context.lane;
  if (step == Step::kWhole || lane.network_layout.empty() || lane.network_layout.holds_two_batches)
    return {};
  return error(hepErrorUnsupported,
               "rank %d: halves of operations between domains need rings for two batches of %d "
               "tokens, which do not fit in the config's network_bytes or in %d chunks",
               lane_.context.rank, lane.shape.max_tokens, kMaxNetworkSlots);
}

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

// The rows for other domains go in turns with those that come, in halves all at once: then the
// rings hold them all.
Status HostRouting::move_rows(const Operation& operation, const hepDispatchArgs_t& args,
                              bool x_in_place, Step step) {
  if (step != Step::kReceive)
    HEP_TRY(publish(operation, backend_.arithmetic(), args, x_in_place, state_));
  std::optional<Packer> packer;
  if (operation.rail() != nullptr) packer.emplace(operation, args, state_);
  if (step == Step::kSend) {
    for (int chunk = 0; packer && chunk < packer->num_chunks(); ++chunk)
      HEP_TRY(packer->pack(chunk));
    return {};
  }
  const bool whole = step == Step::kWhole;
  HEP_TRY(receive_rows(operation, args, whole && packer ? &*packer : nullptr, state_));
  if (whole) HEP_TRY(wait_for_readers(operation, operation.epoch()));
  if (packer && whole) HEP_TRY(wait_for_takers(operation));
  return packer ? packer->await_sent() : Status();
}

// What the caller's batch is stands in the routing, too: its update was executed when it was
// called.
Status HostRouting::dispatch(const DispatchRequest& request, const Batch& batch, Step step,
                             hepStream_t stream) {
  HEP_TRY(backend_.check_stream(stream));
  HEP_TRY(check_halves(step));
  const hepDispatchArgs_t& args = request.args;
  bool in_heap = false;
  if (args.quantize == hepQuantizeNone)
    HEP_TRY(find_rows_in_heap(lane_.context, "x", args.x, batch.num_tokens,
                              args.hidden * element_bytes(args.type), &in_heap));
  HEP_TRY(backend_.check_alive());

  if (request.update) HEP_TRY(run_update(*request.update, step));
  const DefaultFloatEnvironment environment;
  const Operation operation = backend_.start(lane_, hepOperationDispatch, step);
  // A second half waits for the peers' first halves alone, so that one thread can be several ranks:
  // x, which is the caller's again then, is not read in place.
  const bool whole = step == Step::kWhole;
  HEP_TRY(operation.run([&] { return move_rows(operation, args, in_heap && whole, step); }));
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
  HEP_TRY(check_halves(step));
  bool in_heap = false;  // makes no difference here, but a y that leaves the heap is refused
  HEP_TRY(find_outputs_in_heap(lane_.context, args, &in_heap));
  HEP_TRY(backend_.check_alive());
  const DefaultFloatEnvironment environment;
  const Operation operation = backend_.start(lane_, hepOperationCombine, step);
  const RowArithmetic& arithmetic = backend_.arithmetic();
  return operation.run([&]() -> Status {
    if (step != Step::kReceive) {
      if (lane_.relays) lane_.relays->begin(operation, arithmetic, args, state_);
      HEP_TRY(send_partials(operation, arithmetic, args, state_));
    }
    return step != Step::kSend ? add_partials(operation, arithmetic, args, state_) : Status();
  });
}

Status HostRouting::query(hepRoutingCounts_t* counts, hepStream_t stream) {
  HEP_TRY(backend_.check_stream(stream));
  HEP_TRY(backend_.check_alive());
  const int num_experts = lane_.context.lane.shape.num_local_experts();
  counts->num_flat_rows = state_.totals->num_flat_rows;
  counts->num_expert_rows = state_.totals->num_expert_rows;
  counts->num_padded_rows = state_.expert_offsets[num_experts];
  counts->max_expert_rows =
      *std::max_element(state_.tokens_per_expert, state_.tokens_per_expert + num_experts);
  counts->max_selections = state_.totals->max_selections;
  if (counts->tokens_per_expert != nullptr)
    std::copy_n(state_.tokens_per_expert, num_experts, counts->tokens_per_expert);
  return {};
}

}  // namespace hep
