// SPDX-License-Identifier: Apache-2.0
// What came out of a job on one rank, byte for byte, against the oracle.
#include <algorithm>
#include <cstring>
#include <sstream>

#include "job.h"

namespace {

// The elements of an output that were to be written, then poison to its end.
template <typename T>
void expect_array(const harness::GuardedBuffer& buffer, const std::vector<T>& expected,
                  const std::string& what) {
  std::vector<T> actual(buffer.bytes() / sizeof(T)), full = expected;
  T poison;
  std::memset(&poison, kPoison, sizeof(T));
  full.resize(actual.size(), poison);
  buffer.download(actual.data(), buffer.bytes());
  EXPECT_TRUE(buffer.intact()) << what << ": written out of bounds";
  for (size_t i = 0; i < full.size(); ++i) {
    if (std::memcmp(&full[i], &actual[i], sizeof(T)) == 0) continue;
    ADD_FAILURE() << what << "[" << i << "] is " << actual[i] << ", expected " << full[i]
                  << (i < expected.size() ? "" : " (untouched)");
    return;
  }
}

// Downloads rows a few at a time and compares them with expected_row(index, row); rows from
// `written` on must be poison. Stops at the first that differs.
template <typename ExpectedRow>
void expect_rows(const harness::GuardedBuffer& buffer, int64_t written, int hidden,
                 ExpectedRow expected_row, const std::string& what) {
  EXPECT_TRUE(buffer.intact()) << what << ": written out of bounds";
  const int64_t row_bytes = hidden * sizeof(uint16_t);
  const int64_t num_rows = buffer.bytes() / row_bytes;
  std::vector<uint16_t> poison(hidden), row(hidden), rows;
  std::memset(poison.data(), kPoison, row_bytes);
  for (int64_t first = 0; first < num_rows; first += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, num_rows - first);
    rows.resize(count * hidden);
    buffer.download(rows.data(), count * row_bytes, first * row_bytes);
    for (int64_t i = 0; i < count; ++i) {
      row = poison;
      if (first + i < written) expected_row(first + i, row.data());
      const auto [e, a] = std::mismatch(row.begin(), row.end(), &rows[i * hidden]);
      if (e == row.end()) continue;
      std::ostringstream values;
      values << std::hex << "0x" << *a << ", expected 0x" << *e;
      ADD_FAILURE() << what << "[" << first + i << "][" << e - row.begin() << "] is "
                    << values.str() << (first + i < written ? "" : " (untouched)");
      return;
    }
  }
}

template <typename T>
std::vector<T> downloaded(const harness::Buffer& buffer) {
  std::vector<T> values(buffer.bytes() / sizeof(T));
  buffer.download(values.data(), buffer.bytes());
  return values;
}

reference::Weights weights_of(const Dispatch& dispatch) {
  reference::Weights weights;
  for (const std::vector<float>& of_source : dispatch.weights)
    weights.push_back(dispatch.has_weights ? of_source.data() : nullptr);
  return weights;
}

}  // namespace

std::string JobRun::where(const char* operation, ptrdiff_t index) const {
  return job_->name + ": rank " + std::to_string(rank_.rank) + ": " + operation + " " +
         std::to_string(index) + ": ";
}

void JobRun::verify() {
  rank_.stream.synchronize();
  for (size_t i = 0; i < updates_.size(); ++i) verify_update(job_->updates[i], updates_[i]);
  for (size_t i = 0; i < dispatches_.size(); ++i)
    verify_dispatch(job_->dispatches[i], dispatches_[i]);
  for (size_t i = 0; i < combines_.size(); ++i) verify_combine(job_->combines[i], combines_[i]);
  hepResult_t error = hepErrorInternal;
  EXPECT_HEP(hepCommGetAsyncError(rank_.comm, &error));
  EXPECT_EQ(error, job_->async_error)
      << job_->name << ": rank " << rank_.rank << ": " << hepGetLastError();
}

void JobRun::expect_counts(const Update& update) {
  const std::string place = where("query after update", &update - job_->updates.data());
  const reference::Arrivals& arrivals = update.expected->at(rank_.rank);
  std::vector<int32_t> tokens_per_expert(arrivals.tokens_per_expert.size(), -7);
  hepRoutingCounts_t counts = HEP_ROUTING_COUNTS_INITIALIZER;
  counts.tokens_per_expert = tokens_per_expert.data();
  const hepRouting_t routing = this->routing(update.routing);
  if (!succeeded(hepRoutingQuery(routing, &counts, rank_.stream.get()), "hepRoutingQuery")) return;
  EXPECT_EQ(tokens_per_expert, arrivals.tokens_per_expert) << place;
  EXPECT_EQ(counts.num_flat_rows, static_cast<int64_t>(arrivals.rows.size())) << place;
  EXPECT_EQ(counts.num_expert_rows, static_cast<int64_t>(arrivals.selections.size())) << place;
  EXPECT_EQ(counts.num_padded_rows, static_cast<int64_t>(arrivals.places.size())) << place;
}

void JobRun::verify_update(const Update& update, const UpdateRun& run) {
  const std::string place = where("update", &run - updates_.data());
  const reference::Arrivals& arrivals = update.expected->at(rank_.rank);
  EXPECT_EQ(downloaded<int32_t>(run.tokens_per_expert), arrivals.tokens_per_expert) << place;
  EXPECT_EQ(downloaded<int32_t>(run.expert_offsets), arrivals.expert_offsets) << place;
  const std::vector<int64_t> totals = downloaded<int64_t>(run.totals);
  EXPECT_EQ(totals[0], static_cast<int64_t>(arrivals.rows.size())) << place << "num_flat_rows";
  EXPECT_EQ(totals[1], static_cast<int64_t>(arrivals.selections.size()))
      << place << "num_expert_rows";
}

void JobRun::verify_dispatch(const Dispatch& dispatch, const DispatchRun& run) {
  const std::string place = where("dispatch", &run - dispatches_.data());
  const hepRowCounters_t expected_counters = reference::row_counters(
      expected(dispatch.update).at(rank_.rank), dispatch.layout, dispatch.capacity[rank_.rank]);
  const hepRowCounters_t counters = downloaded<hepRowCounters_t>(run.counters)[0];
  EXPECT_EQ(counters.needed, expected_counters.needed) << place;
  EXPECT_EQ(counters.written, expected_counters.written) << place;
  EXPECT_EQ(counters.overflow, expected_counters.overflow) << place;
  verify_rows(dispatch, run, place);
  verify_extras(dispatch, run, place);
}

void JobRun::verify_rows(const Dispatch& dispatch, const DispatchRun& run,
                         const std::string& where) {
  const reference::Arrivals& arrivals = expected(dispatch.update).at(rank_.rank);
  const int64_t written =
      std::min(arrivals.num_rows(dispatch.layout), dispatch.capacity[rank_.rank]);
  const auto expected_row = [&](int64_t place, uint16_t* out) {
    const reference::Row row = reference::row_at(arrivals, dispatch.layout, place);
    if (row.count == 0) {
      std::fill(out, out + job_->hidden, uint16_t{0});
    } else {
      dispatch.x.row(row.source, row.token, job_->hidden, out);
    }
  };
  expect_rows(run.rows, written, job_->hidden, expected_row, where + "rows");
}

void JobRun::verify_extras(const Dispatch& dispatch, const DispatchRun& run,
                           const std::string& where) {
  const reference::Routing& routing = expected(dispatch.update);
  const reference::Arrivals& arrivals = routing.at(rank_.rank);
  const reference::Weights weights = weights_of(dispatch);
  const bool flat = dispatch.layout == hepLayoutFlat;
  const int64_t capacity = dispatch.capacity[rank_.rank];
  if (dispatch.extras) {
    std::vector<float> row_weights;
    std::vector<int32_t> row_experts, row_sources, row_tokens;
    const int64_t written = std::min(arrivals.num_rows(dispatch.layout), capacity);
    for (int64_t place = 0; place < written; ++place) {
      const reference::Row row = reference::row_at(arrivals, dispatch.layout, place);
      row_sources.push_back(row.source);
      row_tokens.push_back(row.token);
      const size_t first = row_weights.size();
      row_weights.resize(first + (flat ? routing.top_k() : 1), 0.0f);
      row_experts.resize(row_weights.size(), -1);
      for (int i = 0; i < row.count; ++i) {
        const reference::Selection& selection = row.selections[i];
        const size_t column = first + (flat ? selection.k : 0);
        row_weights[column] = reference::weight_of(weights, routing.top_k(), selection);
        row_experts[column] = selection.expert;
      }
    }
    expect_array(run.row_weights, row_weights, where + "row_weights");
    expect_array(run.row_sources, row_sources, where + "row_sources");
    expect_array(run.row_tokens, row_tokens, where + "row_tokens");
    if (flat) expect_array(run.row_experts, row_experts, where + "row_experts");
  }
  if (flat) {
    std::vector<int32_t> gather = reference::gather_list(arrivals, capacity);
    const auto fits = static_cast<size_t>(dispatch.gather_capacity[rank_.rank]);
    gather.resize(std::min(gather.size(), fits));
    expect_array(run.gather, gather, where + "gather");
  }
}

void JobRun::verify_combine(const Combine& combine, const CombineRun& run) {
  const std::string place = where("combine", &run - combines_.data());
  const reference::Routing& routing = expected(combine.update);
  reference::Weights weights;
  if (combine.mode == hepWeightsDispatched)
    weights = weights_of(job_->dispatches[combine.weights_of]);
  std::vector<uint16_t> y(job_->hidden);
  const auto row = [&](int rank, int64_t place) -> const uint16_t* {
    if (place >= combine.capacity[rank]) return nullptr;
    combine.y.row(rank, place, job_->hidden, y.data());
    return y.data();
  };
  const auto weight = [&](int rank, int64_t place) {
    if (combine.mode == hepWeightsNone) return 1.0f;
    if (combine.mode == hepWeightsRow) return combine.row_weights.at(rank, place);
    return reference::dispatched_weight(weights, routing.top_k(),
                                        reference::row_at(routing.at(rank), combine.layout, place));
  };
  const auto expected_row = [&](int64_t token, uint16_t* out) {
    reference::combine_token(routing, combine.layout, rank_.rank, token, job_->hidden, row, weight,
                             out);
  };
  expect_rows(run.out, routing.batch(rank_.rank).num_tokens, job_->hidden, expected_row,
              place + "out");
}
