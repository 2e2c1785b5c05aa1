// SPDX-License-Identifier: Apache-2.0
// Combine: every rank sums its experts' rows of each token and sends the sum to a slot of the
// token's rank, which adds up the ranks' sums. Numbers and order are those of hepCombine.
#include <algorithm>
#include <array>
#include <cmath>

#include "host/bfloat16.h"
#include "host/host_routing.h"
#include "host/signal.h"

namespace hep {
namespace {

// The rows that are to be added, in their order, each with its factor.
class Terms {
 public:
  void add(const void* row, float weight) {
    terms_[count_++] = {static_cast<const Bfloat16*>(row), weight};
  }

  // s = w * y for the first, s = fma(w, y, s) for each further one, rounded once; no term gives +0.
  void sum(int columns, Bfloat16* result) const {
    for (int h = 0; h < columns; ++h) {
      float sum = count_ == 0 ? 0.0f : terms_[0].weight * to_float(terms_[0].row[h]);
      for (int i = 1; i < count_; ++i)
        sum = std::fmaf(terms_[i].weight, to_float(terms_[i].row[h]), sum);
      result[h] = to_bfloat16(sum);
    }
  }

 private:
  struct Term {
    const Bfloat16* row;
    float weight;
  };
  std::array<Term, kMaxTopK> terms_;  // a token has at most as many selections, and so ranks
  int count_ = 0;
};

// Sums this rank's contributions to one token after the other.
class Reducer {
 public:
  Reducer(const Operation& operation, const hepCombineArgs_t& args, const RoutingState& state)
      : args_(args),
        state_(state),
        columns_(operation.shape().partial_row_bytes / static_cast<int>(sizeof(Bfloat16))) {}

  void reduce(int64_t flat_row, Bfloat16* partial) const {
    const Row& row = state_.rows[flat_row];
    Terms terms;
    if (args_.layout == hepLayoutFlat) {
      if (flat_row < args_.capacity) terms.add(row_at(flat_row), flat_weight(flat_row));
    } else {
      for (uint32_t j = row.first; j < row.first + row.count; ++j) {
        const int64_t place = state_.selections[j].place;
        if (place < args_.capacity) terms.add(row_at(place), expert_weight(j));
      }
    }
    terms.sum(columns_, partial);
  }

 private:
  const void* row_at(int64_t place) const {
    return static_cast<const Bfloat16*>(args_.y) + place * columns_;
  }

  float flat_weight(int64_t flat_row) const {
    if (args_.weight_mode == hepWeightsNone) return 1.0f;
    if (args_.weight_mode == hepWeightsRow) return args_.row_weights[flat_row];
    const Row& row = state_.rows[flat_row];
    float sum = state_.weights[row.first];
    for (uint32_t j = row.first + 1; j < row.first + row.count; ++j) sum += state_.weights[j];
    return sum;
  }

  float expert_weight(uint32_t selection) const {
    if (args_.weight_mode == hepWeightsNone) return 1.0f;
    if (args_.weight_mode == hepWeightsDispatched) return state_.weights[selection];
    return args_.row_weights[state_.selections[selection].place];
  }

  const hepCombineArgs_t& args_;
  const RoutingState& state_;
  const int columns_;
};

// Sends this rank's sums for the tokens of one source, chunk by chunk. A chunk is signalled even if
// it has no rows here: the source waits for every rank.
Status reduce_source(const Operation& operation, int source, const Reducer& reducer,
                     const RoutingState& state) {
  HEP_TRY(operation.wait(hepPhaseSlots, source, operation.from(source).slots_free,
                         operation.epoch() - 1));
  const WindowLayout& layout = operation.layout();
  void* window = operation.window(source);
  const uint32_t* chunk_rows = state.chunk_rows + source * (operation.shape().max_chunks() + 1);
  const int num_chunks = ceil_div(static_cast<int>(state.source_tokens[source]), kChunkTokens);
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    for (uint32_t i = chunk_rows[chunk]; i < chunk_rows[chunk + 1]; ++i) {
      const Row& row = state.rows[i];
      reducer.reduce(i, at<Bfloat16>(window, layout.partial_at(row.token, row.ordinal)));
    }
    store_release(at<uint64_t>(window, layout.chunk_ready_at(chunk, operation.rank())),
                  operation.epoch());
  }
  return {};
}

// Adds up the ranks' sums for one token; slots are in ascending rank order.
void add_partials(const Operation& operation, int token, int count, void* out) {
  const WindowLayout& layout = operation.layout();
  const int row_bytes = operation.shape().partial_row_bytes;
  Terms partials;
  for (int ordinal = 0; ordinal < count; ++ordinal)
    partials.add(at<Bfloat16>(operation.own_window(), layout.partial_at(token, ordinal)), 1.0f);
  partials.sum(row_bytes / static_cast<int>(sizeof(Bfloat16)),
               at<Bfloat16>(out, static_cast<uint64_t>(token) * row_bytes));
}

Status add_own_tokens(const Operation& operation, void* out, const RoutingState& state) {
  const WindowLayout& layout = operation.layout();
  for (int chunk = 0; chunk < ceil_div(state.num_tokens, kChunkTokens); ++chunk) {
    for (int peer = 0; peer < operation.num_ranks(); ++peer) {
      const auto& ready = *at<uint64_t>(operation.own_window(), layout.chunk_ready_at(chunk, peer));
      HEP_TRY(operation.wait(hepPhasePartials, peer, ready, operation.epoch()));
    }
    const int end = std::min(state.num_tokens, (chunk + 1) * kChunkTokens);
    for (int token = chunk * kChunkTokens; token < end; ++token)
      add_partials(operation, token, state.partial_counts[token], out);
  }
  return {};
}

}  // namespace

Status run_combine(const Operation& operation, const hepCombineArgs_t& args,
                   const RoutingState& state) {
  const Reducer reducer(operation, args, state);
  for (int source = 0; source < operation.num_ranks(); ++source)
    HEP_TRY(reduce_source(operation, source, reducer, state));
  HEP_TRY(add_own_tokens(operation, args.out, state));
  for (int peer = 0; peer < operation.num_ranks(); ++peer)
    store_release(&operation.to(peer).slots_free, operation.epoch());
  return {};
}

}  // namespace hep
