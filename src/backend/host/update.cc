// SPDX-License-Identifier: Apache-2.0
// The update of a routing: every rank sends each peer records of the tokens that go there, and
// turns the records that it receives into the places of their rows.
#include <algorithm>
#include <array>

#include "backend/host/backend.h"
#include "backend/host/routing.h"
#include "backend/host/signal.h"
#include "protocol/at.h"
#include "protocol/records.h"
#include "protocol/shape.h"
#include "protocol/window_layout.h"

namespace hep {
namespace {

struct Choice {
  int expert;  // global
  int k;
};

using TokenChoices = std::array<Choice, kMaxTopK>;

// Writes the records of this rank into one peer's window.
class RecordWriter {
 public:
  RecordWriter() = default;
  RecordWriter(const Operation& operation, int destination, const TopK& choice) {
    void* window = operation.window(destination);
    const WindowLayout& layout = operation.layout();
    const uint64_t epoch = operation.epoch();
    const int num_experts = operation.shape().num_local_experts();
    source_ = operation.rank();
    first_expert_ = destination * num_experts;
    header_ = at<RecordHeader>(window, layout.header_at(epoch, source_));
    counts_ = at<uint32_t>(window, layout.counts_at(epoch, source_));
    rows_ = at<Row>(window, layout.rows_at(epoch, source_));
    selections_ = at<Selection>(window, layout.selections_at(epoch, source_));
    *header_ = {static_cast<uint32_t>(choice.batch.num_tokens), 0, 0,
                static_cast<uint32_t>(choice.batch.top_k)};
    std::fill_n(counts_, num_experts, 0);
  }

  // Adds a token with its choices among the peer's experts, in ascending (expert, k) order.
  void add_row(int token, int ordinal, const Choice* choices, int count) {
    rows_[header_->num_rows++] = {static_cast<uint32_t>(token),   header_->num_selections,
                                  static_cast<uint16_t>(count),   static_cast<uint16_t>(ordinal),
                                  static_cast<uint16_t>(source_), 0};
    for (int i = 0; i < count; ++i) {
      const auto expert = static_cast<uint16_t>(choices[i].expert - first_expert_);
      selections_[header_->num_selections++] = {counts_[expert]++, expert,
                                                static_cast<uint16_t>(choices[i].k)};
    }
  }

 private:
  int source_ = 0;
  int first_expert_ = 0;
  RecordHeader* header_ = nullptr;
  uint32_t* counts_ = nullptr;
  Row* rows_ = nullptr;
  Selection* selections_ = nullptr;
};

int64_t read_index(const TopK& choice, int token, int k) {
  const int64_t index = static_cast<int64_t>(token) * choice.batch.top_k + k;
  return choice.index_type == hepIndexInt64 ? static_cast<const int64_t*>(choice.indices)[index]
                                            : static_cast<const int32_t*>(choice.indices)[index];
}

int read_ids(const TopK& choice, int token, int num_experts, HostBackend& backend,
             TokenChoices* choices) {
  int count = 0;
  for (int k = 0; k < choice.batch.top_k; ++k) {
    const int64_t expert = read_index(choice, token, k);
    if (expert < -1 || expert >= num_experts) backend.note_bad_index(token, k, expert);
    if (expert < 0 || expert >= num_experts) continue;
    (*choices)[count++] = {static_cast<int>(expert), k};
  }
  std::sort(choices->begin(), choices->begin() + count, [](const Choice& a, const Choice& b) {
    return a.expert != b.expert ? a.expert < b.expert : a.k < b.k;
  });
  return count;
}

int read_map(const TopK& choice, int token, int num_experts, HostBackend& backend,
             TokenChoices* choices) {
  const auto* selected =
      static_cast<const uint8_t*>(choice.indices) + static_cast<int64_t>(token) * num_experts;
  int count = 0;
  for (int expert = 0; expert < num_experts; ++expert) {
    if (selected[expert] == 0) continue;
    if (count < choice.batch.top_k) (*choices)[count] = {expert, count};
    ++count;
  }
  if (count > choice.batch.top_k) backend.note_bad_index(token, -1, count);
  return std::min(count, choice.batch.top_k);
}

// Reads one token's choices, in ascending (expert, k) order, which is also by rank; returns how
// many there are.
int read_choices(const TopK& choice, int token, int num_experts, HostBackend& backend,
                 TokenChoices* choices) {
  return choice.index_type == hepIndexMap ? read_map(choice, token, num_experts, backend, choices)
                                          : read_ids(choice, token, num_experts, backend, choices);
}

// What the layouts of a batch depend on must be the same on all ranks.
Status check_top_k(const Operation& operation, int source, int top_k) {
  const auto& header = *at<RecordHeader>(operation.own_window(),
                                         operation.layout().header_at(operation.epoch(), source));
  if (header.top_k == static_cast<uint32_t>(top_k)) return {};
  return operation.fail(hepErrorMismatch, hepPhaseRecords, source, top_k, header.top_k);
}

// Adds up the sources' counts and lays out the experts' blocks.
void assign_experts(const Operation& operation, RoutingState& state) {
  const int num_experts = operation.shape().num_local_experts();
  std::fill_n(state.tokens_per_expert, num_experts, 0);
  for (int s = 0; s < operation.num_ranks(); ++s) {
    const uint32_t* counts =
        at<uint32_t>(operation.own_window(), operation.layout().counts_at(operation.epoch(), s));
    for (int e = 0; e < num_experts; ++e) state.tokens_per_expert[e] += counts[e];
  }

  state.totals->num_expert_rows = 0;
  state.expert_offsets[0] = 0;
  for (int e = 0; e < num_experts; ++e) {
    const int end = state.expert_offsets[e] + state.tokens_per_expert[e];
    state.expert_offsets[e + 1] = static_cast<int32_t>(align_up(end, state.alignment));
    state.totals->num_expert_rows += state.tokens_per_expert[e];
  }
}

// Finds where each chunk of a source's tokens begins among its rows.
void index_chunks(const Shape& shape, int source, RoutingState& state) {
  uint32_t* chunk_rows = state.chunk_rows + source * (shape.max_chunks() + 1);
  const int tokens = chunk_tokens(static_cast<int>(state.source_tokens[source]));
  uint32_t row = state.source_rows[source];
  for (int chunk = 0; chunk <= shape.max_chunks(); ++chunk) {
    const uint32_t first_token = chunk * tokens;
    while (row < state.source_rows[source + 1] && state.rows[row].token < first_token) ++row;
    chunk_rows[chunk] = row;
  }
}

// Copies the records of all sources in canonical order, with relative indices made absolute.
void take_records(const Operation& operation, RoutingState& state) {
  const Shape& shape = operation.shape();
  const WindowLayout& layout = operation.layout();
  const void* window = operation.own_window();

  std::array<uint32_t, kMaxExperts> next_place;  // by local expert, of the source at hand
  std::copy_n(state.expert_offsets, shape.num_local_experts(), next_place.begin());
  uint32_t num_rows = 0, num_selections = 0;
  for (int s = 0; s < shape.num_ranks; ++s) {
    const auto& header = *at<RecordHeader>(window, layout.header_at(operation.epoch(), s));
    const auto* counts = at<uint32_t>(window, layout.counts_at(operation.epoch(), s));
    const auto* rows = at<Row>(window, layout.rows_at(operation.epoch(), s));
    const auto* selections = at<Selection>(window, layout.selections_at(operation.epoch(), s));

    for (uint32_t i = 0; i < header.num_rows; ++i) {
      state.rows[num_rows + i] = rows[i];
      state.rows[num_rows + i].first += num_selections;
    }
    for (uint32_t i = 0; i < header.num_selections; ++i) {
      state.selections[num_selections + i] = selections[i];
      state.selections[num_selections + i].place += next_place[selections[i].expert];
    }
    for (int e = 0; e < shape.num_local_experts(); ++e) next_place[e] += counts[e];

    state.source_tokens[s] = header.num_tokens;
    state.source_rows[s] = num_rows;
    state.source_rows[s + 1] = num_rows + header.num_rows;
    index_chunks(shape, s, state);
    num_rows += header.num_rows;
    num_selections += header.num_selections;
  }
  state.totals->num_flat_rows = num_rows;
}

}  // namespace

// Records are double-buffered by parity. Overwriting update n-2 is safe: every peer has sent update
// n-1, so it has finished reading n-2.
void send_update(const Operation& operation, const TopK& choice, HostBackend& backend,
                 RoutingState& state) {
  state.totals->num_tokens = choice.batch.num_tokens;
  state.totals->top_k = choice.batch.top_k;
  state.totals->update = operation.epoch();
  const Shape& shape = operation.shape();
  std::array<RecordWriter, kMaxRanks> writers;
  for (int d = 0; d < shape.num_ranks; ++d) writers[d] = RecordWriter(operation, d, choice);

  TokenChoices choices;
  for (int token = 0; token < choice.batch.num_tokens; ++token) {
    const int count = read_choices(choice, token, shape.num_experts, backend, &choices);
    int ordinal = 0;
    for (int begin = 0, end; begin < count; begin = end, ++ordinal) {
      const int destination = choices[begin].expert / shape.num_local_experts();
      end = begin + 1;
      while (end < count && choices[end].expert / shape.num_local_experts() == destination) ++end;
      writers[destination].add_row(token, ordinal, &choices[begin], end - begin);
    }
    state.partial_counts[token] = static_cast<uint8_t>(ordinal);
  }

  for (int d = 0; d < shape.num_ranks; ++d)
    store_release(&operation.to(d).records_ready, operation.epoch());
}

Status receive_update(const Operation& operation, RoutingState& state) {
  for (int s = 0; s < operation.num_ranks(); ++s) {
    HEP_TRY(operation.wait(hepPhaseRecords, s, operation.from(s).records_ready, operation.epoch()));
    HEP_TRY(check_top_k(operation, s, state.top_k()));
  }
  assign_experts(operation, state);
  take_records(operation, state);
  return {};
}

}  // namespace hep
