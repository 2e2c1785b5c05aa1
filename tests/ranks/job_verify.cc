// SPDX-License-Identifier: Apache-2.0
// What came out of a job on one rank, byte for byte, against the oracle.
#include <algorithm>
#include <cstring>
#include <sstream>

#include "job.h"

namespace {

// An output's elements before a dispatch or combine.
template <typename T>
std::vector<T> untouched(const harness::GuardedBuffer& buffer) {
  std::vector<T> elements(buffer.bytes() / sizeof(T));
  if (!elements.empty()) std::memset(elements.data(), kPoison, buffer.bytes());
  return elements;
}

// Every element of an output, and nothing outside.
template <typename T>
void expect_array(const harness::GuardedBuffer& buffer, const std::vector<T>& expected,
                  const std::string& what) {
  std::vector<T> actual(buffer.bytes() / sizeof(T));
  buffer.download(actual.data(), buffer.bytes());
  EXPECT_TRUE(buffer.intact()) << what << ": written out of bounds";
  ASSERT_EQ(expected.size(), actual.size()) << what;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::memcmp(&expected[i], &actual[i], sizeof(T)) == 0) continue;
    ADD_FAILURE() << what << "[" << i << "] is " << +actual[i] << ", expected " << +expected[i];
    return;
  }
}

// Downloads rows a few at a time and compares them with expected_row(index, row). It returns false
// for rows that must be poison. The first row that differs ends it.
template <typename ExpectedRow>
void expect_rows(const harness::GuardedBuffer& buffer, int64_t row_bytes, ExpectedRow expected_row,
                 const std::string& what) {
  EXPECT_TRUE(buffer.intact()) << what << ": written out of bounds";
  const int64_t num_rows = buffer.bytes() / row_bytes;
  std::vector<unsigned char> row(row_bytes), rows;
  for (int64_t first = 0; first < num_rows; first += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, num_rows - first);
    rows.resize(count * row_bytes);
    buffer.download(rows.data(), count * row_bytes, first * row_bytes);
    for (int64_t i = 0; i < count; ++i) {
      std::fill(row.begin(), row.end(), kPoison);
      const bool written = expected_row(first + i, row.data());
      const auto [e, a] = std::mismatch(row.begin(), row.end(), &rows[i * row_bytes]);
      if (e == row.end()) continue;
      std::ostringstream values;
      values << std::hex << "0x" << +*a << ", expected 0x" << +*e;
      ADD_FAILURE() << what << "[" << first + i << "] byte " << e - row.begin() << " is "
                    << values.str() << (written ? "" : " (untouched)");
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
  for (const harness::GuardedBuffer& memory : routing_memory_)
    EXPECT_TRUE(memory.intact()) << job_->name << ": memory of a routing: written out of bounds";
  EXPECT_EQ(async_error(rank_), expected_async_error())
      << job_->name << ": rank " << rank_.rank << ": " << hepGetLastError();
}

hepResult_t JobRun::expected_async_error() const {
  if (job_->misrouted[rank_.rank]) return hepErrorInvalidArgument;
  return job_->overflowed[rank_.rank] ? hepErrorOverflow : hepSuccess;
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
  EXPECT_EQ(counts.max_expert_rows, arrivals.num_rows(hepLayoutExpertPadded)) << place;
  EXPECT_EQ(counts.max_selections, update.max_selections) << place;
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
  verify_scales(dispatch, run, place);
  if (dispatch.extras) verify_extras(dispatch, run, place);
  verify_lists(dispatch, run, place);
}

void JobRun::verify_rows(const Dispatch& dispatch, const DispatchRun& run,
                         const std::string& where) {
  const harness::ExpectedDispatch rows = expected_dispatch(dispatch);
  const int hidden = hidden_of(dispatch);
  const int64_t bytes = row_bytes(dispatch, type_of(dispatch));
  std::vector<unsigned char> x(row_bytes(dispatch, type_of_x(dispatch))), scales(job_->scale_bytes);
  const harness::InputRow input = [&](int source, int64_t token) {
    dispatch.x.row(source, token, type_of_x(dispatch), hidden, x.data());
    return x.data();
  };
  const auto expected_row = [&](int64_t r, unsigned char* out) {
    if (dispatch.quantize == hepQuantizeNone) return rows.sent(r, input, bytes, out);
    return rows.quantized(r, dispatch.quantize, input, hidden, job_->scale_bytes, out,
                          scales.data());
  };
  expect_rows(run.rows, bytes, expected_row, where + "rows");
}

void JobRun::verify_scales(const Dispatch& dispatch, const DispatchRun& run,
                           const std::string& where) {
  if (!dispatch.delivers_scales()) return;
  const harness::ExpectedDispatch rows = expected_dispatch(dispatch);
  const int hidden = hidden_of(dispatch), bytes = job_->scale_bytes;
  const int64_t capacity = dispatch.capacity[rank_.rank];
  std::vector<unsigned char> input(bytes), row(hidden), scales(bytes);
  std::vector<uint16_t> bf16(hidden);
  const harness::InputRow sent = [&](int source, int64_t token) {
    make_bytes(dispatch.scales_seed, source, token, bytes, input.data());
    return input.data();
  };
  const harness::InputRow x = [&](int source, int64_t token) {
    dispatch.x.row(source, token, hepTypeBfloat16, hidden, bf16.data());
    return bf16.data();
  };
  std::vector<unsigned char> expected = untouched<unsigned char>(run.row_scales);
  for (int64_t r = 0; r < rows.num_rows(); ++r) {
    const bool written = dispatch.has_scales ? rows.sent(r, sent, bytes, scales.data())
                                             : rows.quantized(r, dispatch.quantize, x, hidden,
                                                              bytes, row.data(), scales.data());
    if (!written) continue;
    const int element = dispatch.scale_element_bytes;
    for (int i = 0; i < bytes; ++i) {
      int64_t at = r * bytes + i;
      if (element != 0) {
        // By experts in the expert-padded layout, otherwise as if there were one.
        const bool padded = dispatch.layout == hepLayoutExpertPadded;
        const int64_t expert = padded ? r / capacity : 0, index = padded ? r % capacity : r;
        const int64_t column = expert * (bytes / element) + i / element;
        at = (column * dispatch.scale_stride(rank_.rank) + index) * element + i % element;
      }
      expected[at] = scales[i];
    }
  }
  expect_array(run.row_scales, expected, where + "row_scales");
}

void JobRun::verify_extras(const Dispatch& dispatch, const DispatchRun& run,
                           const std::string& where) {
  const harness::ExpectedDispatch rows = expected_dispatch(dispatch);
  const reference::Weights weights = weights_of(dispatch);
  const bool flat = dispatch.layout == hepLayoutFlat;
  auto row_weights = untouched<float>(run.row_weights);
  auto row_experts = untouched<int32_t>(run.row_experts);
  auto row_sources = untouched<int32_t>(run.row_sources);
  auto row_tokens = untouched<int32_t>(run.row_tokens);
  for (int64_t r = 0; r < rows.num_rows(); ++r) {
    const reference::Row row = rows.row(r);
    if (row.kind == reference::Row::kUntouched) continue;
    row_sources[r] = row.source;
    row_tokens[r] = row.token;
    rows.weights(r, weights, &row_weights[r * rows.columns()]);
    if (flat) rows.experts(r, &row_experts[r * rows.columns()]);
  }
  expect_array(run.row_weights, row_weights, where + "row_weights");
  expect_array(run.row_sources, row_sources, where + "row_sources");
  expect_array(run.row_tokens, row_tokens, where + "row_tokens");
  expect_array(run.row_experts, row_experts, where + "row_experts");
}

void JobRun::verify_lists(const Dispatch& dispatch, const DispatchRun& run,
                          const std::string& where) {
  const reference::Arrivals& arrivals = expected(dispatch.update).at(rank_.rank);
  const int64_t capacity = dispatch.capacity[rank_.rank];
  auto gather = untouched<int32_t>(run.gather);
  const std::vector<int32_t> whole = reference::gather_list(arrivals, capacity);
  std::copy_n(whole.begin(), std::min(whole.size(), gather.size()), gather.begin());
  expect_array(run.gather, gather, where + "gather");

  if (!dispatch.extras) return;
  const hepRowCounters_t counters = reference::row_counters(arrivals, dispatch.layout, capacity);
  expect_array(run.row_counters,
               std::vector<int64_t>{counters.needed, counters.written, counters.overflow},
               where + "row_counters");
  if (dispatch.layout != hepLayoutFlat)
    expect_array(run.expert_rows, reference::expert_rows(arrivals, dispatch.layout, capacity),
                 where + "expert_rows");
  if (dispatch.layout == hepLayoutExpertMajor)
    expect_array(run.group_sizes, reference::group_sizes(arrivals, capacity),
                 where + "group_sizes");
}

harness::ExpectedDispatch JobRun::expected_dispatch(const Dispatch& dispatch) const {
  return harness::ExpectedDispatch(expected(dispatch.update), rank_.rank, dispatch.layout,
                                   dispatch.capacity[rank_.rank]);
}

harness::ExpectedCombine::WeightOf JobRun::combine_weights(const Combine& combine,
                                                           const reference::Combine& shape) const {
  if (combine.mode == hepWeightsNone) return [](int, int64_t) { return 1.0f; };
  if (combine.mode == hepWeightsRow) {
    return [&](int rank, int64_t r) { return combine.row_weights.at(rank, r); };
  }
  return harness::dispatched_weights(expected(combine.update), shape,
                                     weights_of(job_->dispatches[combine.weights_of]));
}

void JobRun::verify_combine(const Combine& combine, const CombineRun& run) {
  const std::string place = where("combine", &run - combines_.data());
  const reference::Routing& routing = expected(combine.update);
  const int hidden = hidden_of(combine);
  const int32_t type = type_of(combine);
  const int32_t partial_type =
      combine.partial_type != hepTypeDefault ? combine.partial_type : job_->partial_type;
  const reference::Combine shape{combine.layout,   type, partial_type, hidden, combine.capacity,
                                 job_->domain_size};
  std::vector<unsigned char> y(row_bytes(combine, type));
  const harness::InputRow input = [&](int rank, int64_t r) {
    combine.y.row(rank, r, type, hidden, y.data());
    return y.data();
  };
  const harness::ExpectedCombine rows(routing, shape, input, combine_weights(combine, shape));
  std::vector<float> values;
  const auto expected_row = [&](int64_t token, unsigned char* out) {
    rows.row(rank_.rank, token, &values, out);
    return true;
  };
  expect_rows(run.out, row_bytes(combine, type), expected_row, place + "out");

  auto gradients = untouched<float>(run.gradients);
  const bool dense = combine.dense_gradients[rank_.rank] != 0;
  const int width = dense ? job_->num_experts : routing.top_k();
  for (size_t at = 0; at < gradients.size(); at += width) {
    const int64_t token = at / width;
    std::vector<float> of_token = reference::token_gradients(
        routing, combine.layout, combine.capacity, rank_.rank, token,
        [&](int rank, int64_t index) { return combine.row_gradients.at(rank, index); });
    if (dense)
      of_token = reference::by_expert(routing, job_->num_experts, rank_.rank, token, of_token);
    std::copy(of_token.begin(), of_token.end(), gradients.begin() + at);
  }
  expect_array(run.gradients, gradients, place + "gradients");
}
