// SPDX-License-Identifier: Apache-2.0
// The update of a routing: every rank sends each peer records of the tokens that go there, and
// turns the records that it receives into the places of their rows.
#include <algorithm>
#include <array>

#include "backend/host/backend.h"
#include "backend/host/record_blocks.h"
#include "backend/host/routing.h"
#include "backend/host/signal.h"
#include "protocol/at.h"
#include "protocol/call_summary.h"
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

// Writes the records of this rank for one other.
class RecordWriter {
 public:
  RecordWriter() = default;
  RecordWriter(const Operation& operation, int destination, const Batch& batch)
      : RecordWriter(operation.rank(), destination * operation.shape().num_local_experts(),
                     records_to(operation, destination)) {
    if (operation.is_local(destination))
      *to_.header = {static_cast<uint32_t>(batch.num_tokens), 0, 0,
                     static_cast<uint16_t>(batch.top_k), 0};
    is_local_ = operation.is_local(destination);
    std::fill_n(to_.counts, operation.shape().num_local_experts(), 0);
  }

  // Adds a token with its choices among the peer's experts, in ascending (expert, k) order.
  void add_row(int token, int ordinal, int position, const Choice* choices, int count) {
    to_.rows[num_rows_++] = {static_cast<uint32_t>(token),   num_selections_,
                             static_cast<uint16_t>(count),   static_cast<uint16_t>(ordinal),
                             static_cast<uint16_t>(source_), static_cast<uint16_t>(position)};
    for (int i = 0; i < count; ++i) {
      const auto expert = static_cast<uint16_t>(choices[i].expert - first_expert_);
      to_.selections[num_selections_++] = {to_.counts[expert]++, expert,
                                           static_cast<uint16_t>(choices[i].k)};
    }
    if (!is_local_) return;  // where the header has the numbers already
    to_.header->num_rows = num_rows_;
    to_.header->num_selections = num_selections_;
  }

  void set_max_selections(int count) { to_.header->max_selections = static_cast<uint16_t>(count); }

 private:
  RecordWriter(int source, int first_expert, const RecordsToWrite& to)
      : source_(source), first_expert_(first_expert), to_(to) {}

  int source_ = 0;
  int first_expert_ = 0;
  RecordsToWrite to_{};
  bool is_local_ = true;
  uint32_t num_rows_ = 0, num_selections_ = 0;
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
  return count;
}

// Reads one token's choices, in ascending (expert, k) order, which is also by rank; returns how
// many it has made. Those past top_k are not among them.
int read_choices(const TopK& choice, int token, int num_experts, HostBackend& backend,
                 TokenChoices* choices) {
  return choice.index_type == hepIndexMap ? read_map(choice, token, num_experts, backend, choices)
                                          : read_ids(choice, token, num_experts, backend, choices);
}

// Calls visit(rank, its choices, their number) for each rank that a token selected, in ascending
// order.
template <typename Visit>
void for_each_rank(const TokenChoices& choices, int count, int experts_of_rank, Visit visit) {
  for (int begin = 0, end; begin < count; begin = end) {
    const int rank = choices[begin].expert / experts_of_rank;
    end = begin + 1;
    while (end < count && choices[end].expert / experts_of_rank == rank) ++end;
    visit(rank, &choices[begin], end - begin);
  }
}

// How much goes to the other domains, whose blocks have no gaps.
RecordTotals count_records(const Operation& operation, const TopK& choice, HostBackend& backend) {
  RecordTotals totals;
  TokenChoices choices;
  const Shape& shape = operation.shape();
  for (int token = 0; token < choice.batch.num_tokens; ++token) {
    const int count = std::min(read_choices(choice, token, shape.num_experts, backend, &choices),
                               choice.batch.top_k);
    int domain = -1;
    for_each_rank(choices, count, shape.num_local_experts(), [&](int rank, const Choice*, int n) {
      ++totals.rank_rows[rank];
      totals.rank_selections[rank] += n;
      if (domain == operation.topology().domain_of(rank)) return;
      domain = operation.topology().domain_of(rank);
      ++totals.domain_rows[domain];
    });
  }
  return totals;
}

// Writes the records of all tokens of this rank, and keeps where each token went.
class TokenWriter {
 public:
  TokenWriter(const Operation& operation, const Batch& batch, HostRoutingState& state)
      : operation_(operation), state_(state), top_k_(batch.top_k) {
    for (int r = 0; r < operation.num_ranks(); ++r) writers_[r] = RecordWriter(operation, r, batch);
    for (int d = 0; d < operation.topology().num_domains(); ++d)
      if (d != operation.domain()) num_ranks_[d] = num_ranks_in(operation, d);
  }

  // `made` counts the token's selections, those past top_k of a map included.
  void add(int token, const TokenChoices& choices, int made) {
    most_ = std::max(most_, made);
    const int count = std::min(made, top_k_);
    keep_experts(token, choices, count);
    int domain = -1, ordinal = 0;
    state_.partial_counts[token] = 0;
    if (!operation_.network().empty()) state_.part_counts[token] = 0;
    for_each_rank(choices, count, operation_.shape().num_local_experts(),
                  [&](int rank, const Choice* own, int n) {
                    if (domain != operation_.topology().domain_of(rank)) {
                      domain = operation_.topology().domain_of(rank);
                      ordinal = 0;
                      enter(token, domain);
                    }
                    const bool is_local = domain == operation_.domain();
                    const int position = is_local ? 0 : static_cast<int>(rows_[domain]) - 1;
                    writers_[rank].add_row(token, ordinal++, position, own, n);
                    (is_local ? state_.partial_counts[token] : num_ranks_[domain][position]) =
                        static_cast<uint8_t>(ordinal);
                  });
  }

  // After the last token.
  void finish() {
    for (int r = 0; r < operation_.num_ranks(); ++r) writers_[r].set_max_selections(most_);
  }

 private:
  void keep_experts(int token, const TokenChoices& choices, int count) {
    uint16_t* const own = state_.own_experts + static_cast<int64_t>(token) * top_k_;
    std::fill_n(own, top_k_, kNoExpert);
    for (int i = 0; i < count; ++i) own[choices[i].k] = static_cast<uint16_t>(choices[i].expert);
  }

  // The token goes to a domain.
  void enter(int token, int domain) {
    if (domain == operation_.domain()) return;
    const uint32_t position = rows_[domain]++;
    state_.part_tokens[state_.first_parts[domain] + position] = static_cast<uint16_t>(token);
    state_.parts_of(token)[state_.part_counts[token]++] = {static_cast<uint16_t>(domain),
                                                           static_cast<uint16_t>(position)};
  }

  const Operation& operation_;
  HostRoutingState& state_;
  const int top_k_;
  int most_ = 0;
  std::array<RecordWriter, kMaxRanks> writers_;
  std::array<uint8_t*, kMaxDomains> num_ranks_{};
  std::array<uint32_t, kMaxDomains> rows_{};
};

// Adds up the sources' counts and lays out the experts' blocks.
void assign_experts(const Operation& operation, HostRoutingState& state) {
  const int num_experts = operation.shape().num_local_experts();
  std::fill_n(state.tokens_per_expert, num_experts, 0);
  for (int s = 0; s < operation.num_ranks(); ++s) {
    const uint32_t* counts = records_of(operation, s).counts;
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
void index_chunks(const Shape& shape, int source, HostRoutingState& state) {
  uint32_t* chunk_rows = state.chunk_rows + source * (shape.max_chunks() + 1);
  const int tokens = chunk_tokens(static_cast<int>(state.source_tokens[source]), shape.num_ranks);
  uint32_t row = state.source_rows[source];
  for (int chunk = 0; chunk <= shape.max_chunks(); ++chunk) {
    const uint32_t first_token = chunk * tokens;
    while (row < state.source_rows[source + 1] && state.rows[row].token < first_token) ++row;
    chunk_rows[chunk] = row;
  }
}

// Copies the records of all sources in canonical order, with relative indices made absolute.
void take_records(const Operation& operation, HostRoutingState& state) {
  const Shape& shape = operation.shape();
  std::array<uint32_t, kMaxExperts> next_place;  // by local expert, of the source at hand
  std::copy_n(state.expert_offsets, shape.num_local_experts(), next_place.begin());
  uint32_t num_rows = 0, num_selections = 0;
  state.totals->max_selections = 0;
  for (int s = 0; s < shape.num_ranks; ++s) {
    const RecordsToRead records = records_of(operation, s);
    const RecordHeader& header = *records.header;
    state.totals->max_selections =
        std::max<int64_t>(state.totals->max_selections, header.max_selections);

    for (uint32_t i = 0; i < header.num_rows; ++i) {
      state.rows[num_rows + i] = records.rows[i];
      state.rows[num_rows + i].first += num_selections;
    }
    for (uint32_t i = 0; i < header.num_selections; ++i) {
      state.selections[num_selections + i] = records.selections[i];
      state.selections[num_selections + i].place += next_place[records.selections[i].expert];
    }
    for (int e = 0; e < shape.num_local_experts(); ++e) next_place[e] += records.counts[e];

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
                 HostRoutingState& state) {
  state.totals->num_tokens = choice.batch.num_tokens;
  state.totals->top_k = choice.batch.top_k;
  state.totals->update = operation.epoch();
  const Shape& shape = operation.shape();
  const bool has_others = !operation.network().empty();
  if (has_others) begin_blocks(operation, count_records(operation, choice, backend), state);

  TokenWriter writer(operation, choice.batch, state);
  TokenChoices choices;
  for (int token = 0; token < choice.batch.num_tokens; ++token) {
    const int made = read_choices(choice, token, shape.num_experts, backend, &choices);
    writer.add(token, choices, made);
  }
  writer.finish();

  for (int d = operation.first_local(); d < operation.end_local(); ++d)
    store_release(&operation.to(d).records_ready, operation.epoch());
  if (has_others) send_blocks(operation);
}

Status receive_update(const Operation& operation, HostRoutingState& state) {
  for (int s = 0; s < operation.num_ranks(); ++s) HEP_TRY(await_records(operation, s, state));
  assign_experts(operation, state);
  take_records(operation, state);
  if (operation.network().empty()) return {};
  keep_blocks(operation, state);
  return await_blocks_sent(operation);
}

}  // namespace hep
