// SPDX-License-Identifier: Apache-2.0
// Dispatch: every rank publishes its tokens, and copies the rows that it is to receive from the peers'
// windows straight to their places.
#include <algorithm>
#include <cstring>

#include "backend/host/routing.h"
#include "backend/host/row_copier.h"
#include "backend/host/signal.h"
#include "protocol/at.h"
#include "protocol/call_summary.h"
#include "protocol/data_type.h"
#include "protocol/output_layout.h"
#include "protocol/records.h"
#include "protocol/signals.h"

namespace hep {
namespace {

// What a source has published.
struct Source {
  int rank;
  const char* window;
  const char* rows;
  const float* weights;  // [T][K]; NULL: every weight is 1
};

// Writes single rows of a dispatch's outputs.
class Outputs {
 public:
  Outputs(const Operation& operation, const hepDispatchArgs_t& args, int64_t num_rows)
      : args_(args),
        row_bytes_(int64_t{operation.shape().hidden} * element_bytes(args.type)),
        scale_bytes_(operation.shape().scale_bytes),
        copier_(row_bytes_, num_rows) {}

  // NULL stands for zeros.
  void write(int64_t place, const void* row, const char* scales, int32_t source, int32_t token) {
    char* to = static_cast<char*>(args_.rows) + place * row_bytes_;
    if (row == nullptr)
      std::memset(to, 0, row_bytes_);
    else
      copier_.copy(to, row);
    if (args_.row_scales != nullptr) write_scales(place, scales);
    if (args_.row_sources != nullptr) args_.row_sources[place] = source;
    if (args_.row_tokens != nullptr) args_.row_tokens[place] = token;
  }

  void write_weight(int64_t place, float weight) {
    if (args_.row_weights != nullptr) args_.row_weights[place] = weight;
  }

  int64_t row_bytes() const { return row_bytes_; }

 private:
  void write_scales(int64_t place, const char* scales) {
    const bool row_major = args_.row_scales_stride == 0;
    const int bytes = row_major ? scale_bytes_ : static_cast<int>(args_.scale_element_bytes);
    const int columns = scale_bytes_ / bytes;
    for (int column = 0; column < columns; ++column) {
      const int64_t element = row_major ? place
                                        : scale_element(args_.layout, args_.capacity, columns,
                                                        args_.row_scales_stride, place, column);
      char* to = static_cast<char*>(args_.row_scales) + element * bytes;
      if (scales == nullptr)
        std::memset(to, 0, bytes);
      else
        std::memcpy(to, scales + column * bytes, bytes);
    }
  }

  const hepDispatchArgs_t& args_;
  const int64_t row_bytes_;
  const int scale_bytes_;
  const RowCopier copier_;
};

// Puts a dispatch's rows, and what belongs to them, to their places.
class Receiver {
 public:
  Receiver(const Operation& operation, const hepDispatchArgs_t& args, RoutingState& state)
      : operation_(operation),
        args_(args),
        state_(state),
        outputs_(operation, args, state.totals->num_flat_rows),
        num_experts_(operation.shape().num_local_experts()),
        top_k_(state.top_k()) {}

  void count_rows() {
    hepRowCounters_t& counters = state_.totals->row_counters;
    counters.needed = needed_rows();
    counters.written = std::min(counters.needed, args_.capacity);
    counters.overflow = counters.needed > args_.capacity;
    if (args_.expert_rows == nullptr) return;
    for (int e = 0; e < num_experts_; ++e)
      args_.expert_rows[e] =
          static_cast<int32_t>(std::min<int64_t>(state_.tokens_per_expert[e], args_.capacity));
  }

  void write_padding() {
    if (args_.layout != hepLayoutExpertMajor) return;
    for (int e = 0; e < num_experts_; ++e) {
      const int64_t begin = state_.expert_offsets[e] + state_.tokens_per_expert[e];
      const int64_t end = std::min<int64_t>(state_.expert_offsets[e + 1], args_.capacity);
      for (int64_t place = begin; place < end; ++place) {
        outputs_.write(place, nullptr, nullptr, -1, -1);
        outputs_.write_weight(place, 0);
      }
    }
  }

  void write_gather() {
    if (args_.gather == nullptr) return;
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

  int64_t needed_rows() const {
    if (args_.layout == hepLayoutFlat) return state_.totals->num_flat_rows;
    if (args_.layout == hepLayoutExpertMajor) return num_padded_rows();
    return *std::max_element(state_.tokens_per_expert, state_.tokens_per_expert + num_experts_);
  }

  void take_row(int64_t place, const Row& row, const Source& source) {
    outputs_.write(place, source.rows + row.token * outputs_.row_bytes(),
                   source.window + operation_.layout().scales_at(operation_.epoch(), row.token),
                   row.source, static_cast<int32_t>(row.token));
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

  void take_flat_row(int64_t place, const Source& source) {
    if (place >= args_.capacity) return;
    const Row& row = state_.rows[place];
    take_row(place, row, source);

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
      const int64_t place = row_of_selection(args_.layout, args_.capacity, num_experts_,
                                             state_.expert_offsets, selection);
      if (place == kDropped) continue;
      take_row(place, row, source);
      outputs_.write_weight(place, weight_of(row, selection, source));
    }
  }

  const Operation& operation_;
  const hepDispatchArgs_t& args_;
  RoutingState& state_;
  Outputs outputs_;
  const int num_experts_;
  const int64_t top_k_;
};

// Waits for what a source publishes.
Status find_source(const Operation& operation, int rank, int top_k, uint64_t call, Source* source) {
  const RowsSignal& from = operation.from(rank).rows_of(operation.epoch());
  HEP_TRY(operation.wait(hepPhaseRows, rank, from.ready, operation.epoch()));
  HEP_TRY(operation.compare_calls(hepPhaseRows, rank, call, from.call));
  const char* window = static_cast<const char*>(operation.window(rank));
  *source = {rank, window, window + from.location, nullptr};
  if (from.has_weights == 0) return {};
  HEP_TRY(operation.wait(hepPhaseWeights, rank, from.weights_ready, operation.epoch()));
  source->weights = at<float>(window, operation.layout().weights_at(operation.epoch(), 0, top_k));
  return {};
}

}  // namespace

Status receive_rows(const Operation& operation, const hepDispatchArgs_t& args,
                    RoutingState& state) {
  Receiver receiver(operation, args, state);
  receiver.count_rows();
  receiver.write_padding();
  receiver.write_gather();
  const uint64_t call = summary_of(args, state.num_tokens(), state.totals->update);
  for (int i = 0; i < operation.num_ranks(); ++i) {
    const int s = operation.in_turn(i);
    Source source;
    HEP_TRY(find_source(operation, s, state.top_k(), call, &source));
    receiver.take_rows(source);
    store_release(&operation.to(s).rows_read, operation.epoch());
  }
  return {};
}

Status wait_for_readers(const Operation& operation, uint64_t epoch) {
  for (int peer = 0; peer < operation.num_ranks(); ++peer)
    HEP_TRY(operation.wait(hepPhaseReaders, peer, operation.from(peer).rows_read, epoch));
  return {};
}

}  // namespace hep
