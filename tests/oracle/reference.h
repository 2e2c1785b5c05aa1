// SPDX-License-Identifier: Apache-2.0
// The oracle: what every rank must receive and get back, by plain loops over ranks, tokens and
// selections. Written from the contract in hybridep.h alone; shares nothing with the library.
#pragma once

#include <hybridep.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "reference_numbers.h"

namespace reference {

// What one rank gives to an update: [num_tokens][top_k] ids; those outside [0, E) select nothing.
struct Batch {
  int64_t num_tokens = 0;
  std::vector<int64_t> indices;
};

// One selection that landed on a rank.
struct Selection {
  int32_t source, token, k;
  int32_t expert;    // local
  int32_t flat_row;  // its place in the flat layout
  int32_t place;     // its place in the expert-major layout
};

struct FlatRow {
  int32_t source, token;
  int32_t first, count;  // its selections, in ascending (expert, k) order
};

// What lands on one rank.
struct Arrivals {
  std::vector<FlatRow> rows;          // in flat order
  std::vector<Selection> selections;  // grouped by flat row
  std::vector<int32_t> places;  // selection of each place of the expert-major layout; -1: padding
  std::vector<int32_t> tokens_per_expert, expert_offsets;
  std::vector<std::vector<int32_t>> row_of_token;  // [source][token] flat row; -1: none

  int num_experts() const { return static_cast<int>(tokens_per_expert.size()); }

  // The capacity that takes all rows of a layout.
  int64_t num_rows(hepLayout_t layout) const {
    if (layout == hepLayoutFlat) return static_cast<int64_t>(rows.size());
    if (layout == hepLayoutExpertMajor) return static_cast<int64_t>(places.size());
    return *std::max_element(tokens_per_expert.begin(), tokens_per_expert.end());
  }

  // How many rows an output of that capacity holds.
  int64_t output_rows(hepLayout_t layout, int64_t capacity) const {
    return layout == hepLayoutExpertPadded ? num_experts() * capacity : capacity;
  }

  // The output row of a selection; -1 if it is dropped.
  int64_t row_of(hepLayout_t layout, int64_t capacity, const Selection& selection) const {
    if (layout == hepLayoutExpertPadded) {
      const int64_t index = selection.place - expert_offsets[selection.expert];
      return index < capacity ? selection.expert * capacity + index : -1;
    }
    const int64_t row = layout == hepLayoutFlat ? selection.flat_row : selection.place;
    return row < capacity ? row : -1;
  }
};

class Routing {
 public:
  Routing(int num_experts, int top_k, int alignment, std::vector<Batch> batches)
      : top_k_(top_k), batches_(std::move(batches)) {
    const int ranks = num_ranks();
    for (int rank = 0; rank < ranks; ++rank) {
      arrivals_.push_back(arrive(rank, num_experts / ranks, alignment));
    }
  }

  int num_ranks() const { return static_cast<int>(batches_.size()); }
  int top_k() const { return top_k_; }
  const Batch& batch(int source) const { return batches_[source]; }
  const Arrivals& at(int rank) const { return arrivals_[rank]; }

 private:
  Arrivals arrive(int rank, int local_experts, int alignment) const {
    Arrivals a;
    const int64_t first_expert = static_cast<int64_t>(rank) * local_experts;
    a.tokens_per_expert.assign(local_experts, 0);
    for (int source = 0; source < num_ranks(); ++source) {
      const Batch& batch = batches_[source];
      a.row_of_token.emplace_back(batch.num_tokens, -1);
      for (int64_t token = 0; token < batch.num_tokens; ++token) {
        const auto first = static_cast<int32_t>(a.selections.size());
        const auto row = static_cast<int32_t>(a.rows.size());
        for (int k = 0; k < top_k_; ++k) {
          const int64_t expert = batch.indices[token * top_k_ + k] - first_expert;
          if (expert < 0 || expert >= local_experts) continue;
          a.selections.push_back(
              {source, static_cast<int32_t>(token), k, static_cast<int32_t>(expert), row, -1});
          ++a.tokens_per_expert[expert];
        }
        const auto count = static_cast<int32_t>(a.selections.size()) - first;
        if (count == 0) continue;
        std::sort(a.selections.begin() + first, a.selections.end(),
                  [](const Selection& l, const Selection& r) {
                    return std::make_pair(l.expert, l.k) < std::make_pair(r.expert, r.k);
                  });
        a.rows.push_back({source, static_cast<int32_t>(token), first, count});
        a.row_of_token[source][token] = row;
      }
    }
    place(&a, alignment);
    return a;
  }

  // Selections are in (source, token, expert, k) order, so that each expert's come in the canonical
  // (source, token, k) order.
  static void place(Arrivals* a, int alignment) {
    int32_t end = 0;
    for (const int32_t tokens : a->tokens_per_expert) {
      a->expert_offsets.push_back(end);
      end += (tokens + alignment - 1) / alignment * alignment;
    }
    std::vector<int32_t> next = a->expert_offsets;
    a->expert_offsets.push_back(end);
    a->places.assign(end, -1);
    for (size_t i = 0; i < a->selections.size(); ++i) {
      Selection& selection = a->selections[i];
      selection.place = next[selection.expert]++;
      a->places[selection.place] = static_cast<int32_t>(i);
    }
  }

  int top_k_;
  std::vector<Batch> batches_;
  std::vector<Arrivals> arrivals_;
};

// One row of a dispatch's output: what is written there.
struct Row {
  enum Kind { kUntouched, kPadding, kToken };
  Kind kind = kUntouched;
  int32_t source = -1, token = -1;
  const Selection* selections = nullptr;
  int count = 0;
};

inline Row row_at(const Arrivals& arrivals, hepLayout_t layout, int64_t capacity, int64_t row) {
  if (row >= arrivals.output_rows(layout, capacity)) return {};
  int64_t place = row;
  if (layout == hepLayoutFlat) {
    if (row >= arrivals.num_rows(layout)) return {};
    const FlatRow& flat = arrivals.rows[row];
    return {Row::kToken, flat.source, flat.token, &arrivals.selections[flat.first], flat.count};
  }
  if (layout == hepLayoutExpertPadded) {
    const int64_t expert = row / capacity, index = row % capacity;
    if (index >= arrivals.tokens_per_expert[expert]) return {};
    place = arrivals.expert_offsets[expert] + index;
  }
  if (place >= static_cast<int64_t>(arrivals.places.size())) return {};
  if (arrivals.places[place] < 0) return {Row::kPadding, -1, -1, nullptr, 0};
  const Selection& selection = arrivals.selections[arrivals.places[place]];
  return {Row::kToken, selection.source, selection.token, &selection, 1};
}

// The same where all rows fit.
inline Row row_at(const Arrivals& arrivals, hepLayout_t layout, int64_t row) {
  return row_at(arrivals, layout, arrivals.num_rows(layout), row);
}

inline hepRowCounters_t row_counters(const Arrivals& arrivals, hepLayout_t layout,
                                     int64_t capacity) {
  const int64_t needed = arrivals.num_rows(layout);
  return {needed, std::min(needed, capacity), needed > capacity ? 1 : 0};
}

// Rows of each expert that an expert layout of that capacity takes.
inline std::vector<int32_t> expert_rows(const Arrivals& arrivals, hepLayout_t layout,
                                        int64_t capacity) {
  std::vector<int32_t> rows(arrivals.num_experts(), 0);
  for (const Selection& selection : arrivals.selections)
    if (arrivals.row_of(layout, capacity, selection) >= 0) ++rows[selection.expert];
  return rows;
}

// Rows of each expert's block that the expert-major layout takes, padding included.
inline std::vector<int64_t> group_sizes(const Arrivals& arrivals, int64_t capacity) {
  std::vector<int64_t> sizes(arrivals.num_experts(), 0);
  int expert = 0;
  for (int64_t place = 0; place < capacity && place < arrivals.expert_offsets.back(); ++place) {
    while (place >= arrivals.expert_offsets[expert + 1]) ++expert;
    ++sizes[expert];
  }
  return sizes;
}

// The flat row that belongs at each place of the expert-major layout.
inline std::vector<int32_t> gather_list(const Arrivals& arrivals, int64_t capacity) {
  std::vector<int32_t> list;
  for (const int32_t selection : arrivals.places) {
    const int32_t row = selection < 0 ? -1 : arrivals.selections[selection].flat_row;
    list.push_back(row < capacity ? row : -1);
  }
  return list;
}

// A dispatch's weights: per source [T][K], or NULL where every weight is 1.
using Weights = std::vector<const float*>;

inline float weight_of(const Weights& weights, int top_k, const Selection& s) {
  const float* const of_source = weights[s.source];
  return of_source == nullptr ? 1.0f : of_source[static_cast<int64_t>(s.token) * top_k + s.k];
}

// What hepWeightsDispatched means for a row: the sum over its selections.
inline float dispatched_weight(const Weights& weights, int top_k, const Row& row) {
  float sum = weight_of(weights, top_k, row.selections[0]);
  for (int i = 1; i < row.count; ++i) sum += weight_of(weights, top_k, row.selections[i]);
  return sum;
}

// sum = w * y, or sum = fma(w, y, sum), column by column.
inline __attribute__((always_inline)) void accumulate_columns(float* sum, const float* y,
                                                              float weight, bool first,
                                                              int hidden) {
  if (first) {
    for (int h = 0; h < hidden; ++h) sum[h] = weight * y[h];
  } else {
    for (int h = 0; h < hidden; ++h) sum[h] = std::fma(weight, y[h], sum[h]);
  }
}

#if defined(__x86_64__)
// The same with the processor's own instruction, which is many times faster than a call.
__attribute__((target("fma"))) inline void accumulate_by_instruction(float* sum, const float* y,
                                                                     float weight, bool first,
                                                                     int hidden) {
  accumulate_columns(sum, y, weight, first, hidden);
}
#endif

inline void accumulate(float* sum, const float* y, float weight, bool first, int hidden) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("fma")) {
    accumulate_by_instruction(sum, y, weight, first, hidden);
    return;
  }
#endif
  accumulate_columns(sum, y, weight, first, hidden);
}

// What a combine is called with, as far as sums depend on it.
struct Combine {
  hepLayout_t layout;
  int32_t type, partial_type;
  int hidden;
  std::vector<int64_t> capacity;  // by rank
  int domain_size = 0;            // ranks of a domain; 0: all

  bool same_domain(int a, int b) const { return domain_size == 0 || domain_of(a) == domain_of(b); }
  int domain_of(int rank) const { return domain_size == 0 ? 0 : rank / domain_size; }
};

// Adds numbers column by column, beginning with the first.
class ColumnSum {
 public:
  explicit ColumnSum(int hidden) : columns_(hidden, 0.0f) {}
  void add(const std::vector<float>& values) {
    for (size_t h = 0; h < columns_.size(); ++h)
      columns_[h] = empty_ ? values[h] : columns_[h] + values[h];
    empty_ = false;
  }
  bool empty() const { return empty_; }
  void clear() {
    std::fill(columns_.begin(), columns_.end(), 0.0f);
    empty_ = true;
  }
  std::vector<float> rounded_to(int32_t type) const {
    std::vector<float> values(columns_);
    for (float& value : values) value = rounded(type, value);
    return values;
  }
  const float* data() const { return columns_.data(); }

 private:
  std::vector<float> columns_;
  bool empty_ = true;
};

// One row of a combine's result. `row(rank, r)` returns y's row r in FP32, `weight(rank, r)` its
// weight.
template <typename RowOf, typename WeightOf>
void combine_token(const Routing& routing, const Combine& combine, int source, int64_t token,
                   RowOf row, WeightOf weight, void* result) {
  const int hidden = combine.hidden;
  std::vector<float> sum(hidden);
  ColumnSum total(hidden), of_domain(hidden);
  const auto end_domain = [&] {  // the part of another domain than the token's own
    if (!of_domain.empty()) total.add(of_domain.rounded_to(combine.partial_type));
    of_domain.clear();
  };
  for (int rank = 0; rank < routing.num_ranks(); ++rank) {
    if (rank > 0 && !combine.same_domain(rank - 1, rank)) end_domain();
    const Arrivals& arrivals = routing.at(rank);
    const int32_t flat_row = arrivals.row_of_token[source][token];
    if (flat_row < 0) continue;
    const FlatRow& flat = arrivals.rows[flat_row];
    const int contributions = combine.layout == hepLayoutFlat ? 1 : flat.count;
    std::fill(sum.begin(), sum.end(), 0.0f);
    bool first = true;
    for (int i = 0; i < contributions; ++i) {
      const int64_t r = arrivals.row_of(combine.layout, combine.capacity[rank],
                                        arrivals.selections[flat.first + i]);
      if (r < 0) continue;
      accumulate(sum.data(), row(rank, r), weight(rank, r), first, hidden);
      first = false;
    }
    for (float& value : sum) value = rounded(combine.partial_type, value);
    (combine.same_domain(rank, source) ? total : of_domain).add(sum);
  }
  end_domain();
  store_row(combine.type, total.data(), hidden, result);
}

// The same in BF16 throughout where all rows fit; `row(rank, r)` returns BF16.
template <typename RowOf, typename WeightOf>
void combine_token(const Routing& routing, hepLayout_t layout, int source, int64_t token,
                   int hidden, RowOf row, WeightOf weight, uint16_t* result) {
  Combine combine{layout, hepTypeBfloat16, hepTypeBfloat16, hidden, {}};
  for (int rank = 0; rank < routing.num_ranks(); ++rank)
    combine.capacity.push_back(routing.at(rank).num_rows(layout));
  std::vector<float> values(hidden);
  const auto loaded = [&](int rank, int64_t r) {
    load_row(hepTypeBfloat16, row(rank, r), hidden, values.data());
    return values.data();
  };
  combine_token(routing, combine, source, token, loaded, weight, result);
}

// The gradients that come back for one token: [K]. `gradient(rank, index)` is an element of a
// rank's row_gradients.
template <typename GradientOf>
std::vector<float> token_gradients(const Routing& routing, hepLayout_t layout,
                                   const std::vector<int64_t>& capacity, int source, int64_t token,
                                   GradientOf gradient) {
  std::vector<float> result(routing.top_k(), 0.0f);
  for (int rank = 0; rank < routing.num_ranks(); ++rank) {
    const Arrivals& arrivals = routing.at(rank);
    const int32_t flat_row = arrivals.row_of_token[source][token];
    if (flat_row < 0) continue;
    const FlatRow& flat = arrivals.rows[flat_row];
    for (int i = 0; i < flat.count; ++i) {
      const Selection& s = arrivals.selections[flat.first + i];
      const int64_t row = arrivals.row_of(layout, capacity[rank], s);
      if (row < 0) continue;
      result[s.k] = gradient(rank, layout == hepLayoutFlat ? row * routing.top_k() + s.k : row);
    }
  }
  return result;
}

// The same by expert: [E], those of an expert that the token selects more than once added up.
inline std::vector<float> by_expert(const Routing& routing, int num_experts, int source,
                                    int64_t token, const std::vector<float>& by_selection) {
  std::vector<float> result(num_experts, 0.0f);
  std::vector<bool> selected(num_experts, false);
  for (int k = 0; k < routing.top_k(); ++k) {
    const int64_t expert = routing.batch(source).indices[token * routing.top_k() + k];
    if (expert < 0 || expert >= num_experts) continue;
    result[expert] = selected[expert] ? result[expert] + by_selection[k] : by_selection[k];
    selected[expert] = true;
  }
  return result;
}

}  // namespace reference
