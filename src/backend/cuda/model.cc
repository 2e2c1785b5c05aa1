// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/model.h"

#include <hybridep.h>

#include <algorithm>
#include <cmath>

namespace hep {
namespace {

constexpr double kBytesPerUs = 1e3;  // of a GB/s
constexpr double kNearlyAsFast = 1.03;

// A block of combine takes a token at a time for each pipeline, or a task of tokens. It has 2 to 8
// pipelines, by the length of rows. The model counts on the fewest.
constexpr int kPipelines = 2;
constexpr int kTokensOfTask = 8;

double eighth_power(double x) {
  const double square = x * x, fourth = square * square;
  return fourth * fourth;
}

// Limits that hold at the same time: the longest one, and a little more where another is as long.
// (2 H200s, flat dispatch: with 16 blocks ports of 159 us and links of 174 take 183 together, with
// 24 blocks 106 and 174 take 176.)
double at_the_same_time(double a, double b, double c) {
  return std::sqrt(std::sqrt(std::sqrt(eighth_power(a) + eighth_power(b) + eighth_power(c))));
}

double remote_part(const Demand& demand) {
  return static_cast<double>(demand.num_ranks - 1) / demand.num_ranks;
}

// The rows that fill the experts' blocks up, half a block for each expert.
double padding_rows(const DispatchDemand& demand) {
  if (demand.layout != hepLayoutExpertMajor) return 0;
  return demand.local_experts * (demand.alignment - 1) / 2.0;
}

}  // namespace

// Of K choices each rank is missed by (1 - 1/R)^K.
double ranks_of_token(int num_ranks, int top_k) {
  return num_ranks * (1 - std::pow(1 - 1.0 / num_ranks, top_k));
}

Traffic traffic_of(const DispatchDemand& demand, const Profile& profile) {
  const double tokens = demand.num_tokens;
  const double rows = tokens * ranks_of_token(demand.num_ranks, demand.top_k);
  const double copies =
      demand.layout == hepLayoutFlat ? rows : tokens * demand.top_k + padding_rows(demand);
  const double row_bytes = static_cast<double>(demand.row_bytes);
  Traffic traffic{};
  traffic.in = rows * row_bytes;
  traffic.out = copies * row_bytes;
  traffic.linked = rows * remote_part(demand) * row_bytes;
  traffic.quantized = tokens * static_cast<double>(demand.x_row_bytes);
  traffic.shares = demand.low_latency ? demand.num_ranks * demand.num_tokens
                                      : static_cast<int32_t>(std::ceil(rows));
  traffic.fixed_us = demand.low_latency ? profile.low_latency_us : profile.dispatch_us;
  traffic.divided_us = demand.low_latency ? profile.choices_us : 0;
  traffic.one_by_one = demand.low_latency;
  return traffic;
}

// The first half turns the rows for the peers into partial sums. The second half adds theirs and
// this rank's own rows.
Traffic traffic_of(const CombineDemand& demand, const Profile& profile) {
  const double remote = remote_part(demand);
  const double partials = ranks_of_token(demand.num_ranks, demand.top_k);
  const double rows = demand.layout == hepLayoutFlat ? partials : demand.top_k;
  const double token_bytes = demand.num_tokens * static_cast<double>(demand.row_bytes);
  const double partial_bytes = demand.num_tokens * static_cast<double>(demand.partial_row_bytes);
  Traffic traffic{};
  traffic.out = token_bytes;
  if (demand.sending == Sending::kNone) {
    traffic.in = partials * token_bytes;
    traffic.linked = remote * partials * token_bytes;
  } else {
    const double sent = demand.sending == Sending::kRows ? token_bytes : partial_bytes;
    traffic.linked = remote * partials * sent;
    traffic.in = rows * token_bytes + traffic.linked;
    traffic.out += traffic.linked;
  }
  const int at_once =
      demand.num_tokens > profile.few_tokens ? kPipelines * kTokensOfTask : kPipelines;
  traffic.shares = (demand.num_tokens + at_once - 1) / at_once;
  traffic.fixed_us = demand.low_latency ? profile.low_latency_us : profile.combine_us;
  traffic.one_by_one = demand.low_latency;
  return traffic;
}

double model_us(const Traffic& traffic, int32_t blocks, const Profile& profile) {
  const double share = std::ceil(static_cast<double>(traffic.shares) / blocks) / traffic.shares;
  const double port_us =
      share *
      std::max((traffic.in + traffic.out) / profile.port_rate, traffic.out / profile.store_rate) /
      kBytesPerUs;
  const double quantize_us = share * traffic.quantized / profile.quantize_rate / kBytesPerUs;
  const double link_us = traffic.linked / profile.link_rate / kBytesPerUs;
  const double memory_us =
      (traffic.in / profile.memory_read_rate + traffic.out / profile.memory_write_rate) /
      kBytesPerUs;
  const double move_us =
      traffic.one_by_one ? port_us + link_us : at_the_same_time(port_us, link_us, memory_us);
  return traffic.fixed_us + traffic.divided_us / blocks + quantize_us + move_us;
}

// More blocks never take longer, so the search may halve.
int32_t fewest_blocks(const Traffic& traffic, int32_t most, const Profile& profile) {
  if (traffic.shares == 0) return 1;
  const double enough_us = kNearlyAsFast * model_us(traffic, most, profile);
  int32_t low = 1, high = most;
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    if (model_us(traffic, middle, profile) <= enough_us)
      high = middle;
    else
      low = middle + 1;
  }
  return high;
}

}  // namespace hep
