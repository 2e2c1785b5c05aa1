// SPDX-License-Identifier: Apache-2.0
// Combine: every rank sums its experts' rows of each token and sends the sum to a slot of the
// token's rank, which adds up the ranks' sums. Numbers and order are those of hepCombine.
#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "backend/host/relay.h"
#include "backend/host/routing.h"
#include "backend/host/row_arithmetic.h"
#include "backend/host/row_copier.h"
#include "backend/host/signal.h"
#include "protocol/at.h"
#include "protocol/call_summary.h"
#include "protocol/data_type.h"
#include "protocol/output_layout.h"
#include "protocol/records.h"
#include "protocol/routing_layout.h"
#include "protocol/shape.h"
#include "protocol/signals.h"
#include "protocol/window_layout.h"

namespace hep {
namespace {

// -0 is a gradient, too.
bool is_not_zero(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits != 0;
}

// One combine of this rank.
class Combiner {
 public:
  Combiner(const Operation& operation, const RowArithmetic& arithmetic,
           const hepCombineArgs_t& args, const HostRoutingState& state,
           const Parts* parts = nullptr)
      : operation_(operation),
        args_(args),
        state_(state),
        parts_(parts),
        sum_outputs_(arithmetic.sum_rows(args.type, args.partial_type)),
        sum_partials_(arithmetic.sum_rows(args.partial_type, args.type)),
        columns_(static_cast<int>(args.hidden)),
        row_bytes_(int64_t{columns_} * element_bytes(args.type)),
        moves_(args.layout == hepLayoutFlat && args.weight_mode == hepWeightsNone &&
               args.type == args.partial_type),
        copier_(row_bytes_, state.totals->num_flat_rows) {}

  // Sums this rank's contributions to a token.
  void reduce(int64_t flat_row, void* partial) {
    // A row that is the whole sum needs no rounding; of a NaN, the last addition makes the
    // canonical one.
    if (moves_ && flat_row < args_.capacity) {
      copier_.copy(partial, at<char>(args_.y, flat_row * row_bytes_));
      return;
    }
    const Row& row = state_.rows[flat_row];
    WeightedRows rows;
    int count = 0;
    const auto add = [&](int64_t place, float weight) {
      rows[count++] = {at<char>(args_.y, place * row_bytes_), weight};
    };
    if (args_.layout == hepLayoutFlat) {
      if (flat_row < args_.capacity) add(flat_row, flat_weight(flat_row));
    } else {
      for (uint32_t j = row.first; j < row.first + row.count; ++j) {
        const int64_t place = expert_row(j);
        if (place != kDropped) add(place, expert_weight(j, place));
      }
    }
    sum_outputs_(rows.data(), count, columns_, partial);
  }

  // Before the signal of what was reduced.
  void fence() const { copier_.fence(); }

  // Sends the gradients of the weights of a token's selections here to `gradients` [K]; those of
  // dropped rows stay zero.
  void send_gradients(int64_t flat_row, float* gradients) const {
    if (args_.row_gradients == nullptr) return;
    const Row& row = state_.rows[flat_row];
    for (uint32_t j = row.first; j < row.first + row.count; ++j) {
      const int k = state_.selections[j].k;
      if (args_.layout == hepLayoutFlat) {
        if (flat_row < args_.capacity)
          gradients[k] = args_.row_gradients[flat_row * state_.top_k() + k];
      } else if (const int64_t place = expert_row(j); place != kDropped) {
        gradients[k] = args_.row_gradients[place];
      }
    }
  }

  // Takes what the ranks have sent for one of this rank's tokens, and leaves zeros.
  void take_gradients(int64_t token) const {
    if (args_.gradients == nullptr) return;
    auto* sent = at<float>(operation_.own_window(), operation_.layout().gradients_at(
                                                        operation_.epoch(), token, state_.top_k()));
    for (int i = 0; parts_ != nullptr && i < state_.part_counts[token]; ++i)
      take_remote_gradients(state_.parts_of(token)[i], sent);
    if (args_.dense_gradients == nullptr)
      std::copy_n(sent, state_.top_k(), args_.gradients + token * state_.top_k());
    else
      take_dense_gradients(token, sent);
    std::fill_n(sent, state_.top_k(), 0.0f);
  }

  // Adds up the parts of one of this rank's tokens. The sums of this domain's ranks stand in
  // ascending rank order, and each part of another domain where its ranks would.
  void add_parts(int token) {
    const WindowLayout& layout = operation_.layout();
    WeightedRows rows;
    int count = 0;
    const RemotePart* part = parts_ != nullptr ? state_.parts_of(token) : nullptr;
    const RemotePart* const end = parts_ != nullptr ? part + state_.part_counts[token] : nullptr;
    for (; part != end && part->domain < operation_.domain(); ++part)
      rows[count++] = {parts_->row(*part), 1.0f};
    for (int ordinal = 0; ordinal < state_.partial_counts[token]; ++ordinal)
      rows[count++] = {
          at<char>(operation_.own_window(), layout.partial_at(operation_.epoch(), token, ordinal)),
          1.0f};
    for (; part != end; ++part) rows[count++] = {parts_->row(*part), 1.0f};
    sum_partials_(rows.data(), count, columns_, at<char>(args_.out, token * row_bytes_));
  }

 private:
  // Those of one expert are added up in ascending k.
  void take_dense_gradients(int64_t token, const float* sent) const {
    const int num_experts = operation_.shape().num_experts;
    float* const gradients = args_.dense_gradients + token * num_experts;
    const uint16_t* const experts = state_.own_experts + token * state_.top_k();
    std::fill_n(gradients, num_experts, 0.0f);
    for (int k = 0; k < state_.top_k(); ++k) {
      if (experts[k] == kNoExpert) continue;
      const bool is_first = std::find(experts, experts + k, experts[k]) == experts + k;
      gradients[experts[k]] = is_first ? sent[k] : gradients[experts[k]] + sent[k];
    }
  }

  using WeightedRows = std::array<WeightedRow, kMaxTopK>;

  // A domain has those of its own selections, and zeros elsewhere.
  void take_remote_gradients(const RemotePart& part, float* gradients) const {
    const float* sent = parts_->gradients(part);
    for (int k = 0; k < state_.top_k(); ++k)
      if (is_not_zero(sent[k])) gradients[k] = sent[k];
  }

  int64_t expert_row(uint32_t selection) const {
    return row_of_selection(args_.layout, args_.capacity, operation_.shape().num_local_experts(),
                            state_.expert_offsets, state_.selections[selection]);
  }

  float flat_weight(int64_t flat_row) const {
    if (args_.weight_mode == hepWeightsNone) return 1.0f;
    if (args_.weight_mode == hepWeightsRow) return args_.row_weights[flat_row];
    const Row& row = state_.rows[flat_row];
    float sum = state_.weights[row.first];
    for (uint32_t j = row.first + 1; j < row.first + row.count; ++j) sum += state_.weights[j];
    return sum;
  }

  float expert_weight(uint32_t selection, int64_t place) const {
    if (args_.weight_mode == hepWeightsNone) return 1.0f;
    if (args_.weight_mode == hepWeightsDispatched) return state_.weights[selection];
    return args_.row_weights[place];
  }

  const Operation& operation_;
  const hepCombineArgs_t& args_;
  const HostRoutingState& state_;
  const Parts* parts_;          // of other domains; NULL: there are none
  const SumRows sum_outputs_;   // a token's expert rows
  const SumRows sum_partials_;  // the ranks' sums
  const int columns_;
  const int64_t row_bytes_;
  const bool moves_;  // flat rows are what the ranks send
  const RowCopier copier_;
};

// Tells a peer what this rank calls, once it has read what it was told before.
Status tell_call(const Operation& operation, int peer, uint64_t call) {
  HEP_TRY(
      operation.wait(hepPhaseSlots, peer, operation.from(peer).slots_free, operation.epoch() - 1));
  OutputsSignal& signal = operation.to(peer).outputs_of(operation.epoch());
  signal.call = call;
  store_release(&signal.ready, operation.epoch());
  return {};
}

Status compare_call(const Operation& operation, int peer, uint64_t call) {
  const OutputsSignal& from = operation.from(peer).outputs_of(operation.epoch());
  HEP_TRY(operation.wait(hepPhasePartials, peer, from.ready, operation.epoch()));
  return operation.compare_calls(hepPhasePartials, peer, call, from.call);
}

// Sends this rank's sums for the tokens of one source of this domain, chunk by chunk. A chunk is
// signalled even if it has no rows here: the source waits for every rank.
void reduce_source(const Operation& operation, int source, Combiner& combiner,
                   const HostRoutingState& state) {
  const WindowLayout& layout = operation.layout();
  void* window = operation.window(source);
  const uint32_t* chunk_rows = state.chunk_rows + source * (operation.shape().max_chunks() + 1);
  const int tokens = static_cast<int>(state.source_tokens[source]);
  for (int chunk = 0; chunk < num_chunks(tokens, operation.num_ranks()); ++chunk) {
    for (uint32_t i = chunk_rows[chunk]; i < chunk_rows[chunk + 1]; ++i) {
      const Row& row = state.rows[i];
      combiner.reduce(
          i, at<char>(window, layout.partial_at(operation.epoch(), row.token, row.ordinal)));
      combiner.send_gradients(
          i, at<float>(window, layout.gradients_at(operation.epoch(), row.token, state.top_k())));
    }
    combiner.fence();
    store_release(
        at<uint64_t>(window, layout.chunk_ready_at(chunk, operation.number_of(operation.rank()))),
        operation.epoch());
  }
}

// Sends this rank's sums for the tokens of the ranks of other domains to the relays in this one.
// All relays get chunk 0 before any gets chunk 1.
Status reduce_remote(const Operation& operation, Combiner& combiner,
                     const HostRoutingState& state) {
  std::array<uint32_t, kMaxRanks> next_row;
  std::copy_n(state.source_rows, operation.num_ranks(), next_row.begin());
  RelayWriter relay(operation, state);
  for (int chunk = 0; chunk < relay.num_chunks(); ++chunk) {
    for (int i = 0; i < operation.num_remote(); ++i) {
      const int source = operation.remote_in_turn(i);
      if (chunk >= relay.chunks_of(source)) continue;
      HEP_TRY(relay.begin(source, chunk));
      uint32_t& next = next_row[source];
      for (; next < state.source_rows[source + 1] && relay.holds(state.rows[next]); ++next) {
        combiner.reduce(next, relay.partial(state.rows[next]));
        combiner.send_gradients(next, relay.gradients(state.rows[next]));
      }
      combiner.fence();
      relay.end();
    }
  }
  return {};
}

Status await_local_chunk(const Operation& operation, int chunk) {
  for (int peer = operation.first_local(); peer < operation.end_local(); ++peer) {
    const auto& ready =
        *at<uint64_t>(operation.own_window(),
                      operation.layout().chunk_ready_at(chunk, operation.number_of(peer)));
    HEP_TRY(operation.wait(hepPhasePartials, peer, ready, operation.epoch()));
  }
  return {};
}

Status add_own_tokens(const Operation& operation, Combiner& combiner, const Parts* parts,
                      const HostRoutingState& state) {
  const int tokens = chunk_tokens(state.num_tokens(), operation.num_ranks());
  for (int chunk = 0; chunk < ceil_div(state.num_tokens(), tokens); ++chunk) {
    HEP_TRY(await_local_chunk(operation, chunk));
    const int end = std::min(state.num_tokens(), (chunk + 1) * tokens);
    for (int token = chunk * tokens; token < end; ++token) {
      if (parts != nullptr) HEP_TRY(parts->await(token));
      combiner.add_parts(token);
      combiner.take_gradients(token);
    }
  }
  return {};
}

}  // namespace

uint64_t combine_call(const hepCombineArgs_t& args, const HostRoutingState& state) {
  const RoutingTotals& totals = *state.totals;
  return summary_of(args, totals.num_tokens, totals.num_flat_rows, totals.update);
}

Status send_partials(const Operation& operation, const RowArithmetic& arithmetic,
                     const hepCombineArgs_t& args, const HostRoutingState& state) {
  Combiner combiner(operation, arithmetic, args, state);
  const uint64_t call = combine_call(args, state);
  const bool has_others = operation.rail() != nullptr;
  if (has_others) begin_network_combine(operation, call, state);
  for (int i = 0; i < operation.domain_size(); ++i) {
    const int source = operation.in_turn(i);
    HEP_TRY(tell_call(operation, source, call));
    reduce_source(operation, source, combiner, state);
  }
  return has_others ? reduce_remote(operation, combiner, state) : Status();
}

Status add_partials(const Operation& operation, const RowArithmetic& arithmetic,
                    const hepCombineArgs_t& args, const HostRoutingState& state) {
  std::optional<Parts> parts;
  if (operation.rail() != nullptr) parts.emplace(operation, args, state);
  Combiner combiner(operation, arithmetic, args, state, parts ? &*parts : nullptr);
  const uint64_t call = combine_call(args, state);
  // Ranks without tokens receive nothing that could be wrong, and need not wait.
  for (int peer = operation.first_local(); peer < operation.end_local() && state.num_tokens() > 0;
       ++peer)
    HEP_TRY(compare_call(operation, peer, call));
  HEP_TRY(add_own_tokens(operation, combiner, parts ? &*parts : nullptr, state));
  if (parts) HEP_TRY(parts->await_all());
  if (parts) HEP_TRY(await_relay(operation));
  for (int peer = operation.first_local(); peer < operation.end_local(); ++peer)
    store_release(&operation.to(peer).slots_free, operation.epoch());
  return {};
}

}  // namespace hep
