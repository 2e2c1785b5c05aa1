// SPDX-License-Identifier: Apache-2.0
// Dispatch: every rank publishes its tokens, and copies the rows that it is to receive from the
// peers' windows straight to their places. The rows of other domains come in chunks, which lie in
// the window of the rail peer of their source.
#include <algorithm>
#include <array>
#include <cstring>

#include "backend/host/pack.h"
#include "backend/host/routing.h"
#include "backend/host/row_chunk.h"
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

// What a source has published, or a chunk of it.
struct Source {
  int rank;
  const char* rows;
  const char* scales;
  const float* weights;    // [T][K]; NULL: every weight is 1
  int32_t first_position;  // of a chunk; -1: rows stand by their token

  int64_t index_of(const Row& row) const {
    return first_position < 0 ? int64_t{row.token} : int64_t{row.position} - first_position;
  }
};

// Writes single rows of a dispatch's outputs.
class Outputs {
 public:
  Outputs(const Operation& operation, const hepDispatchArgs_t& args, int64_t num_rows)
      : args_(args),
        row_bytes_(args.hidden * element_bytes(args.type)),
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
  Receiver(const Operation& operation, const hepDispatchArgs_t& args, HostRoutingState& state)
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
    if (args_.row_counters != nullptr) *args_.row_counters = counters;
    for (int e = 0; e < num_experts_; ++e) {
      if (args_.expert_rows != nullptr)
        args_.expert_rows[e] = static_cast<int32_t>(written_rows(e, state_.tokens_per_expert[e]));
      if (args_.group_sizes != nullptr)
        args_.group_sizes[e] =
            written_rows(e, state_.expert_offsets[e + 1] - state_.expert_offsets[e]);
    }
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

  // Of the flat rows from `begin` on.
  void take_rows(const Source& source, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (source.weights != nullptr) keep_weights(state_.rows[i], source);
      if (args_.layout == hepLayoutFlat)
        take_flat_row(i, source);
      else
        take_expert_rows(state_.rows[i], source);
    }
  }

 private:
  // Of `count` rows of an expert.
  int64_t written_rows(int expert, int32_t count) const {
    return rows_below_capacity(args_.layout, args_.capacity, state_.expert_offsets[expert], count);
  }

  int64_t num_padded_rows() const { return state_.expert_offsets[num_experts_]; }

  int64_t needed_rows() const {
    if (args_.layout == hepLayoutFlat) return state_.totals->num_flat_rows;
    if (args_.layout == hepLayoutExpertMajor) return num_padded_rows();
    return *std::max_element(state_.tokens_per_expert, state_.tokens_per_expert + num_experts_);
  }

  void take_row(int64_t place, const Row& row, const Source& source) {
    const int64_t index = source.index_of(row);
    outputs_.write(place, source.rows + index * outputs_.row_bytes(),
                   source.scales + index * operation_.shape().scale_stride(), row.source,
                   static_cast<int32_t>(row.token));
  }

  float weight_of(const Row& row, const Selection& selection, const Source& source) const {
    return source.weights == nullptr ? 1.0f
                                     : source.weights[source.index_of(row) * top_k_ + selection.k];
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
  HostRoutingState& state_;
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
  *source = {rank, window + from.location,
             window + operation.layout().scales_at(operation.epoch(), 0), nullptr, -1};
  if (from.has_weights == 0) return {};
  HEP_TRY(operation.wait(hepPhaseWeights, rank, from.weights_ready, operation.epoch()));
  source->weights = at<float>(window, operation.layout().weights_at(operation.epoch(), 0, top_k));
  return {};
}

// Takes the chunks of the ranks of other domains.
class ChunkTaker {
 public:
  ChunkTaker(const Operation& operation, const hepDispatchArgs_t& args,
             const HostRoutingState& state, uint64_t call, Receiver& receiver)
      : operation_(operation), args_(args), state_(state), call_(call), receiver_(receiver) {
    std::copy_n(state.source_rows, operation.num_ranks(), next_row_.begin());
    for (int i = 0; i < operation.num_remote(); ++i)
      num_chunks_ = std::max(num_chunks_, chunks_of(operation.remote_in_turn(i)));
  }

  // Of the source that has most.
  int num_chunks() const { return num_chunks_; }

  // Takes chunk number `chunk` of each source that has so many.
  Status take(int chunk) {
    for (int i = 0; i < operation_.num_remote(); ++i) {
      const int source = operation_.remote_in_turn(i);
      if (chunk < chunks_of(source)) HEP_TRY(take_chunk(source, chunk));
    }
    return {};
  }

 private:
  int chunks_of(int source) const {
    return operation_.network().row_ring.num_chunks(state_.source_domain_rows[source]);
  }

  Status take_chunk(int rank, int chunk) {
    Rail& rail = *operation_.rail();
    const int via = rail.via(rank), domain = operation_.topology().domain_of(rank);
    uint64_t& taken = rail.rows_taken[rank];
    HEP_TRY(operation_.wait_by_way(via, hepPhaseLanding, rank,
                                   rail.arrived(via, WriteKind::kRows, domain), taken + 1));
    const void* base = at<char>(operation_.window(via),
                                operation_.network().row_chunk_in_at(rail.index_of(domain), taken));
    const ChunkHeader& header = *at<ChunkHeader>(base, 0);
    HEP_TRY(operation_.compare_calls(hepPhaseLanding, rank, call_, header.call));
    take_rows(rank, chunk, base);
    ++taken;
    store_release(
        at<uint64_t>(operation_.window(via), operation_.network().taken_at(
                                                 domain, operation_.number_of(operation_.rank()))),
        taken);
    return {};
  }

  void take_rows(int rank, int chunk, const void* base) {
    const auto& header = *at<ChunkHeader>(base, 0);
    const int64_t row_bytes = args_.hidden * element_bytes(args_.type);
    const RowChunkLayout layout =
        RowChunkLayout::make(header, row_bytes, operation_.shape().scale_stride(), state_.top_k());
    const int32_t first = chunk * operation_.network().row_ring.rows;
    const int32_t end = first + static_cast<int32_t>(header.num_rows);
    const int64_t begin = next_row_[rank];
    uint32_t& next = next_row_[rank];
    while (next < state_.source_rows[rank + 1] && state_.rows[next].position < end) ++next;
    receiver_.take_rows(
        {rank, at<char>(base, layout.rows), at<char>(base, layout.scales),
         header.has_weights != 0 ? at<float>(base, layout.weights) : nullptr, first},
        begin, next);
  }

  const Operation& operation_;
  const hepDispatchArgs_t& args_;
  const HostRoutingState& state_;
  const uint64_t call_;
  Receiver& receiver_;
  int num_chunks_ = 0;
  std::array<uint32_t, kMaxRanks> next_row_{};  // flat row that is to be taken next, by source
};

// Takes the rows of this domain, each source's at once.
Status take_local_rows(const Operation& operation, const HostRoutingState& state, uint64_t call,
                       Receiver& receiver) {
  for (int i = 0; i < operation.domain_size(); ++i) {
    const int s = operation.in_turn(i);
    Source source;
    HEP_TRY(find_source(operation, s, state.top_k(), call, &source));
    receiver.take_rows(source, state.source_rows[s], state.source_rows[s + 1]);
    store_release(&operation.to(s).rows_read, operation.epoch());
  }
  return {};
}

// Takes chunk 0 of all sources before chunk 1 of any: then rings of any number of slots let all
// ranks go on. `packer`: whose chunks go in turns with those that are taken, but for chunk 0, which
// has been sent; NULL: all have been sent.
Status exchange_chunks(Packer* packer, ChunkTaker& taker) {
  const int to_pack = packer != nullptr ? packer->num_chunks() : 0;
  for (int chunk = 0; chunk < std::max(to_pack, taker.num_chunks()); ++chunk) {
    if (chunk > 0 && chunk < to_pack) HEP_TRY(packer->pack(chunk));
    if (chunk < taker.num_chunks()) HEP_TRY(taker.take(chunk));
  }
  return {};
}

}  // namespace

Status receive_rows(const Operation& operation, const hepDispatchArgs_t& args, Packer* packer,
                    HostRoutingState& state) {
  Receiver receiver(operation, args, state);
  receiver.count_rows();
  receiver.write_padding();
  receiver.write_gather();
  const uint64_t call = summary_of(args, state.num_tokens(), state.totals->update);
  if (packer != nullptr) HEP_TRY(packer->pack(0));  // on its way while this domain's rows are taken
  HEP_TRY(take_local_rows(operation, state, call, receiver));
  if (operation.network().empty()) return {};
  ChunkTaker taker(operation, args, state, call, receiver);
  return exchange_chunks(packer, taker);
}

Status wait_for_readers(const Operation& operation, uint64_t epoch) {
  for (int peer = operation.first_local(); peer < operation.end_local(); ++peer)
    HEP_TRY(operation.wait(hepPhaseReaders, peer, operation.from(peer).rows_read, epoch));
  return {};
}

Status wait_for_takers(const Operation& operation) {
  const Rail& rail = *operation.rail();
  for (int i = 0; i < rail.num_others(); ++i) {
    const int domain = rail.in_turn(i);
    const uint64_t all = rail.rows_taken[rail.peer(domain)];
    for (int peer = operation.first_local(); peer < operation.end_local(); ++peer)
      HEP_TRY(operation.wait(
          hepPhaseReaders, peer,
          *at<uint64_t>(operation.own_window(),
                        operation.network().taken_at(domain, operation.number_of(peer))),
          all));
  }
  return {};
}

}  // namespace hep
