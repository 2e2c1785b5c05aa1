// SPDX-License-Identifier: Apache-2.0
// The making of jobs.
#include <algorithm>
#include <cstring>

#include "job.h"

namespace {

// A key's own stream of numbers.
Random stream_of(uint64_t seed, uint64_t rank, uint64_t index) {
  Random key(seed ^ (rank * 0x9e3779b97f4a7c15u) ^ (index << 20));
  return Random(key.next());
}

uint16_t special_bits(uint64_t bits) {
  constexpr uint16_t kValues[] = {0x0000, 0x8000, 0x7f80, 0xff80, 0x7fc0, 0xffc1,
                                  0x0001, 0x807f, 0x7f7f, 0xff7f, 0x0080, 0x3f80};
  return kValues[bits % std::size(kValues)];
}

// Magnitudes from 2^-7 to 2^8, any sign and mantissa.
uint16_t ordinary_bits(uint16_t bits) {
  const uint16_t exponent = 120 + ((bits >> 7) & 15);
  return static_cast<uint16_t>((bits & 0x807f) | (exponent << 7));
}

// Now and then one whose sum with others depends on their order.
float random_weight(Random& random) {
  if (random.chance(20)) return random.pick({16777216.0f, -16777216.0f, 1.0f, 0.0f, -0.0f});
  return static_cast<float>(random.between(-1000000, 3000000)) / 1000003.0f;
}

int64_t illegal_id(Random& random, int64_t num_experts, hepIndexType_t type) {
  if (type == hepIndexInt64 && random.chance(50)) {
    // Would be legal if it were cut to 32 bits.
    return random.pick({int64_t{1} << 32, -(int64_t{1} << 32) + 1});
  }
  return random.pick(
      {num_experts, num_experts + 1000, int64_t{-2}, int64_t{INT32_MAX}, int64_t{INT32_MIN}});
}

std::vector<int64_t> choose(Random& random, int num_experts, int top_k, hepIndexType_t type,
                            const Taste& taste) {
  std::vector<int64_t> chosen;
  while (static_cast<int>(chosen.size()) < top_k) {
    int64_t expert = random.between(0, num_experts - 1);
    if (random.chance(taste.hot_percent))
      expert = taste.first_hot + random.between(0, taste.num_hot - 1);
    if (random.chance(taste.absent_percent)) expert = -1;
    if (random.chance(taste.illegal_percent)) expert = illegal_id(random, num_experts, type);
    const bool again = expert >= 0 && taste.distinct && top_k * 2 <= num_experts &&
                       taste.hot_percent == 0 &&
                       std::find(chosen.begin(), chosen.end(), expert) != chosen.end();
    if (!again) chosen.push_back(expert);
  }
  return chosen;
}

}  // namespace

void Payload::row(int rank, int64_t index, int hidden, uint16_t* out) const {
  Random random = stream_of(seed, rank, index);
  for (int h = 0; h < hidden; h += 4) {
    const uint64_t bits = random.next();
    for (int i = 0; i < 4; ++i) out[h + i] = ordinary_bits(static_cast<uint16_t>(bits >> (16 * i)));
    if (special) out[h + bits % 4] = special_bits(bits >> 7);
  }
}

float RowWeights::at(int rank, int64_t place) const {
  Random random = stream_of(seed, rank, place);
  return random_weight(random);
}

JobBuilder::JobBuilder(int num_ranks, int num_experts, int hidden, Random& random)
    : num_ranks_(num_ranks), random_(random) {
  job_.num_experts = num_experts;
  job_.hidden = hidden;
}

int JobBuilder::add_routing(int alignment) {
  job_.alignments.push_back(alignment);
  return static_cast<int>(job_.alignments.size()) - 1;
}

int JobBuilder::add_update(int routing, int top_k, hepIndexType_t index_type,
                           const std::vector<int64_t>& num_tokens, const Taste& taste) {
  std::vector<reference::Batch> batches(num_ranks_);
  for (int rank = 0; rank < num_ranks_; ++rank) {
    batches[rank].num_tokens = num_tokens[rank];
    for (int64_t token = 0; token < num_tokens[rank]; ++token) {
      const std::vector<int64_t> chosen =
          choose(random_, job_.num_experts, top_k, index_type, taste);
      batches[rank].indices.insert(batches[rank].indices.end(), chosen.begin(), chosen.end());
    }
  }
  auto expected = std::make_shared<reference::Routing>(
      job_.num_experts, top_k, job_.alignments[routing], std::move(batches));
  const int index = static_cast<int>(job_.updates.size());
  job_.updates.push_back({routing, index_type, false, std::move(expected)});
  job_.order.emplace_back(hepOperationRouting, index);
  return index;
}

int JobBuilder::add_dispatch(int update, hepLayout_t layout, bool has_weights) {
  const reference::Routing& expected = *job_.updates[update].expected;
  Dispatch dispatch{};
  dispatch.update = update;
  dispatch.layout = layout;
  dispatch.x.seed = random_.next();
  dispatch.has_weights = has_weights;
  dispatch.extras = true;
  dispatch.x_in_heap.assign(num_ranks_, 0);
  for (int rank = 0; rank < num_ranks_; ++rank) {
    std::vector<float> weights(expected.batch(rank).num_tokens * expected.top_k());
    for (float& weight : weights) weight = random_weight(random_);
    dispatch.weights.push_back(std::move(weights));
    dispatch.capacity.push_back(expected.at(rank).num_rows(layout));
    dispatch.gather_capacity.push_back(
        layout == hepLayoutFlat ? expected.at(rank).num_rows(hepLayoutExpertMajor) : 0);
  }
  const int index = static_cast<int>(job_.dispatches.size());
  job_.dispatches.push_back(std::move(dispatch));
  job_.order.emplace_back(hepOperationDispatch, index);
  return index;
}

int JobBuilder::add_combine(int update, hepLayout_t layout, hepWeightMode_t mode, int weights_of) {
  const reference::Routing& expected = *job_.updates[update].expected;
  Combine combine{};
  combine.update = update;
  combine.layout = layout;
  combine.mode = mode;
  combine.weights_of = weights_of;
  combine.y.seed = random_.next();
  combine.row_weights.seed = random_.next();
  combine.y_in_heap.assign(num_ranks_, 0);
  for (int rank = 0; rank < num_ranks_; ++rank)
    combine.capacity.push_back(expected.at(rank).num_rows(layout));
  const int index = static_cast<int>(job_.combines.size());
  job_.combines.push_back(std::move(combine));
  job_.order.emplace_back(hepOperationCombine, index);
  return index;
}

Job JobBuilder::finish(const std::string& name) {
  job_.name = name;
  return job_;
}
