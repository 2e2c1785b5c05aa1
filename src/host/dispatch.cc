// SPDX-License-Identifier: Apache-2.0
// Dispatch: every rank publishes its tokens and weights in its window, and copies the rows that it
// is to receive from the peers' windows straight to their places.
#include <algorithm>
#include <cstring>

#include "host/host_routing.h"
#include "host/signal.h"

namespace hep {
namespace {

// What a source has published.
struct Source {
  int rank;
  const char* rows;
  const float* weights;  // [T][K]; NULL: every weight is 1
};

// Puts a dispatch's rows, and what belongs to them, to their places.
class Receiver {
 public:
  Receiver(const Operation& operation, const hepDispatchArgs_t& args, RoutingState& state)
      : args_(args),
        state_(state),
        num_experts_(operation.shape().num_local_experts()),
        row_bytes_(operation.shape().row_bytes),
        top_k_(state.top_k) {}

  void count_rows() {
    hepRowCounters_t& counters = state_.totals->row_counters;
    counters.needed =
        args_.layout == hepLayoutFlat ? state_.totals->num_flat_rows : num_padded_rows();
    counters.written = std::min(counters.needed, args_.capacity);
    counters.overflow = counters.needed > args_.capacity;
  }

  void write_padding() {
    if (args_.layout == hepLayoutFlat) return;
    for (int e = 0; e < num_experts_; ++e) {
      const int64_t begin = state_.expert_offsets[e] + state_.tokens_per_expert[e];
      const int64_t end = std::min<int64_t>(state_.expert_offsets[e + 1], args_.capacity);
      for (int64_t place = begin; place < end; ++place) {
        std::memset(row_at(place), 0, row_bytes_);
        if (args_.row_weights != nullptr) args_.row_weights[place] = 0;
        write_origin(place, -1, -1);
      }
    }
  }

  void write_gather() {
    if (args_.layout != hepLayoutFlat || args_.gather == nullptr) return;
    std::fill_n(args_.gather, std::min(num_padded_rows(), args_.gather_capacity), -1);
    for (int64_t i = 0; i < std::min(state_.totals->num_flat_rows, args_.capacity); ++i) {
      const Row& row = state_.rows[i];
      for (uint32_t j = row.first; j < row.first + row.count; ++j) {
        const int64_t place = state_.selections[j].place;
        if (place < args_.gather_capacity) args_.gather[place] = static_cast<int32_t>(i);
      }
    }
  }

  void take_rows(const Source& source) {
    for (int64_t i = state_.source_rows[source.rank]; i < state_.source_rows[source.rank + 1];
         ++i) {
      if (source.weights != nullptr) keep_weights(state_.rows[i], source);
      if (args_.layout == hepLayoutFlat)
        take_flat_row(i, source);
      else
        take_expert_rows(state_.rows[i], source);
    }
  }

 private:
  int64_t num_padded_rows() const { return state_.expert_offsets[num_experts_]; }

  char* row_at(int64_t place) const { return static_cast<char*>(args_.rows) + place * row_bytes_; }

  const char* token_of(const Row& row, const Source& source) const {
    return source.rows + row.token * row_bytes_;
  }

  float weight_of(const Row& row, const Selection& selection, const Source& source) const {
    return source.weights == nullptr
               ? 1.0f
               : source.weights[static_cast<int64_t>(row.token) * top_k_ + selection.k];
  }

  void keep_weights(const Row& row, const Source& source) {
    for (uint32_t j = row.first; j < row.first + row.count; ++j)
      state_.weights[j] = weight_of(row, state_.selections[j], source);
  }

  void write_origin(int64_t place, int32_t source, int32_t token) {
    if (args_.row_sources != nullptr) args_.row_sources[place] = source;
    if (args_.row_tokens != nullptr) args_.row_tokens[place] = token;
  }

  void take_flat_row(int64_t place, const Source& source) {
    if (place >= args_.capacity) return;
    const Row& row = state_.rows[place];
    std::memcpy(row_at(place), token_of(row, source), row_bytes_);
    write_origin(place, row.source, static_cast<int32_t>(row.token));

    float* weights = args_.row_weights == nullptr ? nullptr : args_.row_weights + place * top_k_;
    int32_t* experts = args_.row_experts == nullptr ? nullptr : args_.row_experts + place * top_k_;
    if (weights != nullptr) std::fill_n(weights, top_k_, 0.0f);
    if (experts != nullptr) std::fill_n(experts, top_k_, -1);
    for (uint32_t j = row.first; j < row.first + row.count; ++j) {
      const Selection& selection = state_.selections[j];
      if (weights != nullptr) weights[selection.k] = weight_of(row, selection, source);
      if (experts != nullptr) experts[selection.k] = selection.expert;
    }
  }

  void take_expert_rows(const Row& row, const Source& source) {
    for (uint32_t j = row.first; j < row.first + row.count; ++j) {
      const Selection& selection = state_.selections[j];
      if (selection.place >= args_.capacity) continue;
      std::memcpy(row_at(selection.place), token_of(row, source), row_bytes_);
      write_origin(selection.place, row.source, static_cast<int32_t>(row.token));
      if (args_.row_weights != nullptr)
        args_.row_weights[selection.place] = weight_of(row, selection, source);
    }
  }

  const hepDispatchArgs_t& args_;
  RoutingState& state_;
  const int num_experts_;
  const int64_t row_bytes_;
  const int64_t top_k_;
};

// The sections may be overwritten: the dispatch before waited until all peers had read them.
void publish(const Operation& operation, const hepDispatchArgs_t& args, bool x_in_heap,
             const RoutingState& state) {
  char* window = static_cast<char*>(operation.own_window());
  const WindowLayout& layout = operation.layout();
  const uint64_t row_bytes = operation.shape().row_bytes;
  uint64_t rows_offset = layout.rows;
  if (x_in_heap)
    rows_offset = static_cast<const char*>(args.x) - window;
  else if (state.num_tokens > 0)
    std::memcpy(window + layout.rows, args.x, state.num_tokens * row_bytes);

  for (int peer = 0; peer < operation.num_ranks(); ++peer) {
    Signals& to = operation.to(peer);
    to.rows_offset = rows_offset;
    to.has_weights = args.weights != nullptr;
    store_release(&to.rows_ready, operation.epoch());
  }

  if (args.weights == nullptr) return;
  std::copy_n(args.weights, static_cast<int64_t>(state.num_tokens) * state.top_k,
              at<float>(window, layout.weights_at(0, state.top_k)));
  for (int peer = 0; peer < operation.num_ranks(); ++peer)
    store_release(&operation.to(peer).weights_ready, operation.epoch());
}

// Waits for what a source publishes.
Status find_source(const Operation& operation, int rank, int top_k, Source* source) {
  const Signals& from = operation.from(rank);
  HEP_TRY(operation.wait(hepPhaseRows, rank, from.rows_ready, operation.epoch()));
  const void* window = operation.window(rank);
  *source = {rank, at<char>(window, from.rows_offset), nullptr};
  if (from.has_weights == 0) return {};
  HEP_TRY(operation.wait(hepPhaseWeights, rank, from.weights_ready, operation.epoch()));
  source->weights = at<float>(window, operation.layout().weights_at(0, top_k));
  return {};
}

}  // namespace

Status run_dispatch(const Operation& operation, const hepDispatchArgs_t& args, bool x_in_heap,
                    RoutingState& state) {
  publish(operation, args, x_in_heap, state);

  Receiver receiver(operation, args, state);
  receiver.count_rows();
  receiver.write_padding();
  receiver.write_gather();
  for (int s = 0; s < operation.num_ranks(); ++s) {
    Source source;
    HEP_TRY(find_source(operation, s, state.top_k, &source));
    receiver.take_rows(source);
    store_release(&operation.to(s).rows_read, operation.epoch());
  }

  for (int peer = 0; peer < operation.num_ranks(); ++peer)
    HEP_TRY(
        operation.wait(hepPhaseReaders, peer, operation.from(peer).rows_read, operation.epoch()));
  return {};
}

}  // namespace hep
