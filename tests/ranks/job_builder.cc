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

// A type's zeros, infinities, NaN, numbers next to the ends, and others of interest.
uint32_t special_code(int32_t type, uint64_t bits) {
  constexpr uint32_t kBfloat16[] = {0x0000, 0x8000, 0x7f80, 0xff80, 0x7fc0, 0xffc1,
                                    0x0001, 0x807f, 0x7f7f, 0xff7f, 0x0080, 0x3f80};
  constexpr uint32_t kFloat16[] = {0x0000, 0x8000, 0x7c00, 0xfc00, 0x7e00, 0xfc01,
                                   0x0001, 0x83ff, 0x7bff, 0xfbff, 0x0400, 0x3c00};
  constexpr uint32_t kFloat32[] = {0x00000000, 0x80000000, 0x7f800000, 0xff800000,
                                   0x7fc00000, 0xff800001, 0x00000001, 0x807fffff,
                                   0x7f7fffff, 0xff7fffff, 0x00800000, 0x477fffff};
  static_assert(std::size(kBfloat16) == std::size(kFloat16));
  static_assert(std::size(kBfloat16) == std::size(kFloat32));
  const size_t i = bits % std::size(kBfloat16);
  return type == hepTypeFloat32 ? kFloat32[i] : type == hepTypeFloat16 ? kFloat16[i] : kBfloat16[i];
}

// Magnitudes from 2^-7 to 2^8, any sign and mantissa.
uint32_t ordinary_code(int32_t type, uint32_t bits) {
  if (type == hepTypeFloat16) {
    const uint32_t exponent = 8 + ((bits >> 10) & 15);
    return (bits & 0x83ff) | exponent << 10;
  }
  const int mantissa = type == hepTypeFloat32 ? 23 : 7;
  const uint32_t exponent = 120 + ((bits >> mantissa) & 15);
  return (bits & ~(0xffu << mantissa)) | exponent << mantissa;
}

// The numbers of one row.
template <typename Code>
void make_numbers(Random& random, int32_t type, bool special, int hidden, void* out) {
  constexpr int kAtOnce = sizeof(uint64_t) / sizeof(Code);
  for (int h = 0; h < hidden; h += kAtOnce) {
    const uint64_t bits = random.next();
    Code codes[kAtOnce];
    for (int i = 0; i < kAtOnce; ++i)
      codes[i] =
          static_cast<Code>(ordinary_code(type, static_cast<Code>(bits >> (8 * sizeof(Code) * i))));
    if (special) codes[bits % kAtOnce] = static_cast<Code>(special_code(type, bits >> 7));
    std::memcpy(static_cast<Code*>(out) + h, codes, sizeof codes);
  }
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
                            const RoutingPattern& pattern) {
  std::vector<int64_t> chosen;
  while (static_cast<int>(chosen.size()) < top_k) {
    int64_t expert = random.between(0, num_experts - 1);
    if (random.chance(pattern.hot_percent))
      expert = pattern.first_hot + random.between(0, pattern.num_hot - 1);
    if (random.chance(pattern.absent_percent)) expert = -1;
    if (random.chance(pattern.illegal_percent)) expert = illegal_id(random, num_experts, type);
    const bool again = expert >= 0 && pattern.distinct && top_k * 2 <= num_experts &&
                       pattern.hot_percent == 0 &&
                       std::find(chosen.begin(), chosen.end(), expert) != chosen.end();
    if (!again) chosen.push_back(expert);
  }
  return chosen;
}

// A token's row of a map, and what it stands for: the first top_k selected experts, by ascending
// id.
std::vector<int64_t> choose_by_map(Random& random, int num_experts, int top_k,
                                   const RoutingPattern& pattern, std::vector<unsigned char>* map) {
  std::vector<unsigned char> row(num_experts, 0);
  const auto select = [&](int64_t expert) {
    row[expert] = static_cast<unsigned char>(random.between(1, 255));
  };
  for (const int64_t expert : choose(random, num_experts, top_k, hepIndexInt32, pattern))
    if (expert >= 0 && expert < num_experts) select(expert);
  if (random.chance(pattern.excess_percent))
    for (int i = 0; i <= top_k && i < num_experts; ++i) select(i);
  map->insert(map->end(), row.begin(), row.end());

  std::vector<int64_t> chosen;
  for (int expert = 0; expert < num_experts && static_cast<int>(chosen.size()) < top_k; ++expert)
    if (row[expert] != 0) chosen.push_back(expert);
  chosen.resize(top_k, -1);
  return chosen;
}

// The most selections that a token makes: of those in `experts`, or of all in its row of a map.
int64_t most_selections(const std::vector<int64_t>& experts, int num_experts, int top_k,
                        const std::vector<unsigned char>& map) {
  int64_t most = 0;
  for (size_t i = 0; i < map.size(); i += num_experts)
    most = std::max<int64_t>(
        most, num_experts - std::count(map.begin() + i, map.begin() + i + num_experts, 0));
  for (size_t i = 0; i < experts.size(); i += top_k)
    most = std::max<int64_t>(
        most, std::count_if(experts.begin() + i, experts.begin() + i + top_k,
                            [&](int64_t expert) { return expert >= 0 && expert < num_experts; }));
  return most;
}

}  // namespace

void make_bytes(uint64_t seed, int rank, int64_t index, int count, unsigned char* out) {
  Random random = stream_of(seed, rank, index);
  for (int i = 0; i < count; i += 8) {
    const uint64_t bits = random.next();
    std::memcpy(out + i, &bits, std::min(8, count - i));
  }
}

void Payload::row(int rank, int64_t index, int32_t type, int hidden, void* out) const {
  Random random = stream_of(seed, rank, index);
  switch (reference::bytes_of(type)) {
    case 4: return make_numbers<uint32_t>(random, type, special, hidden, out);
    case 2: return make_numbers<uint16_t>(random, type, special, hidden, out);
    default: return make_bytes(seed, rank, index, hidden, static_cast<unsigned char*>(out));
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
  job_.domain_size = harness::world().domain_size();
}

JobBuilder::JobBuilder(int num_ranks, const hepConfig_t& config, Random& random)
    : JobBuilder(num_ranks, config.num_experts, config.hidden, random) {
  const auto or_default = [](int32_t type, int32_t other) {
    return static_cast<hepDataType_t>(type != hepTypeDefault ? type : other);
  };
  job_.type = or_default(config.type, hepTypeBfloat16);
  const bool summable = job_.type <= hepTypeFloat32;
  job_.combine_type = or_default(config.combine_type, summable ? job_.type : hepTypeBfloat16);
  job_.partial_type = or_default(config.partial_type, hepTypeBfloat16);
  job_.scale_bytes = config.scale_bytes;
}

int JobBuilder::add_routing(int alignment, hepMode_t mode, int lane) {
  RoutingPlace place{};
  place.alignment = alignment;
  place.mode = mode;
  place.lane = lane;
  job_.routings.push_back(place);
  return static_cast<int>(job_.routings.size()) - 1;
}

int JobBuilder::add_update(int routing, int top_k, hepIndexType_t index_type,
                           const std::vector<int64_t>& num_tokens, const RoutingPattern& pattern) {
  return add_update(routing, top_k, std::vector<hepIndexType_t>(num_ranks_, index_type), num_tokens,
                    pattern);
}

int JobBuilder::add_update(int routing, int top_k, const std::vector<hepIndexType_t>& index_types,
                           const std::vector<int64_t>& num_tokens, const RoutingPattern& pattern) {
  std::vector<reference::Batch> batches(num_ranks_);
  std::vector<std::vector<unsigned char>> maps(num_ranks_);
  for (int rank = 0; rank < num_ranks_; ++rank) {
    batches[rank].num_tokens = num_tokens[rank];
    const int64_t busy =
        pattern.idle_tail ? random_.between(0, num_tokens[rank]) : num_tokens[rank];
    RoutingPattern idle;
    idle.absent_percent = 100;
    for (int64_t token = 0; token < num_tokens[rank]; ++token) {
      const RoutingPattern& own = token < busy ? pattern : idle;
      const std::vector<int64_t> chosen =
          index_types[rank] == hepIndexMap
              ? choose_by_map(random_, job_.num_experts, top_k, own, &maps[rank])
              : choose(random_, job_.num_experts, top_k, index_types[rank], own);
      batches[rank].indices.insert(batches[rank].indices.end(), chosen.begin(), chosen.end());
    }
  }
  int64_t most = 0;
  for (int rank = 0; rank < num_ranks_; ++rank)
    most =
        std::max(most, most_selections(batches[rank].indices, job_.num_experts, top_k, maps[rank]));
  auto expected = std::make_shared<reference::Routing>(
      job_.num_experts, top_k, job_.routings[routing].alignment, std::move(batches));
  const int index = static_cast<int>(job_.updates.size());
  job_.updates.push_back({routing, index_types, false, std::move(expected), std::move(maps), most});
  job_.order.push_back({hepOperationRouting, index, Step::kWhole});
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
  dispatch.scales_seed = random_.next();
  dispatch.x_memory.assign(num_ranks_, kAnyMemory);
  for (int rank = 0; rank < num_ranks_; ++rank) {
    std::vector<float> weights(expected.batch(rank).num_tokens * expected.top_k());
    for (float& weight : weights) weight = random_weight(random_);
    dispatch.weights.push_back(std::move(weights));
    dispatch.dense_weights.emplace_back();
    dispatch.capacity.push_back(expected.at(rank).num_rows(layout));
    dispatch.gather_capacity.push_back(
        layout == hepLayoutFlat ? expected.at(rank).num_rows(hepLayoutExpertMajor) : 0);
  }
  const int index = static_cast<int>(job_.dispatches.size());
  job_.dispatches.push_back(std::move(dispatch));
  job_.order.push_back({hepOperationDispatch, index, Step::kWhole});
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
  combine.y_memory.assign(num_ranks_, kAnyMemory);
  combine.row_gradients.seed = random_.next();
  combine.dense_gradients.assign(num_ranks_, 0);
  for (int rank = 0; rank < num_ranks_; ++rank)
    combine.capacity.push_back(expected.at(rank).num_rows(layout));
  const int index = static_cast<int>(job_.combines.size());
  job_.combines.push_back(std::move(combine));
  job_.order.push_back({hepOperationCombine, index, Step::kWhole});
  return index;
}

void JobBuilder::give_dense_weights(int index, int rank) {
  Dispatch& dispatch = job_.dispatches[index];
  const reference::Routing& routing = *job_.updates[dispatch.update].expected;
  const reference::Batch& batch = routing.batch(rank);
  std::vector<float>& dense = dispatch.dense_weights[rank];
  dense.resize(batch.num_tokens * job_.num_experts);
  for (float& weight : dense) weight = random_weight(random_);
  for (size_t i = 0; i < batch.indices.size(); ++i) {
    const int64_t expert = batch.indices[i];
    if (expert >= 0 && expert < job_.num_experts)
      dispatch.weights[rank][i] = dense[i / routing.top_k() * job_.num_experts + expert];
  }
}

bool JobBuilder::is_misrouted(const Update& update, int rank) const {
  const reference::Batch& batch = update.expected->batch(rank);
  if (update.index_types[rank] != hepIndexMap)
    return std::any_of(batch.indices.begin(), batch.indices.end(), [this](int64_t expert) {
      return expert < -1 || expert >= job_.num_experts;
    });
  for (int64_t token = 0; token < batch.num_tokens; ++token) {
    const unsigned char* const row = &update.maps[rank][token * job_.num_experts];
    const int64_t selected = job_.num_experts - std::count(row, row + job_.num_experts, 0);
    if (selected > update.expected->top_k()) return true;
  }
  return false;
}

void JobBuilder::fold_update(int dispatch) {
  const int update = job_.dispatches[dispatch].update;
  const auto uses_it = [&](const Call& call) {
    return call.operation == hepOperationDispatch
               ? call.index != dispatch && job_.dispatches[call.index].update == update
               : call.operation == hepOperationCombine &&
                     job_.combines[call.index].update == update;
  };
  if (std::any_of(job_.order.begin(), job_.order.end(), uses_it)) return;
  const auto own = std::find_if(job_.order.begin(), job_.order.end(), [&](const Call& call) {
    return call.operation == hepOperationRouting && call.index == update;
  });
  job_.order.erase(own);
  job_.dispatches[dispatch].does_update = true;
}

// The steps with operations in halves.
std::vector<Call> JobBuilder::split_calls() const {
  struct Open {
    Call receive;
    int between;
  };
  std::vector<Call> calls;
  std::vector<Open> open;
  const auto close_where = [&](auto condition) {
    for (size_t i = 0; i < open.size();) {
      if (!condition(open[i])) {
        ++i;
        continue;
      }
      calls.push_back(open[i].receive);
      open.erase(open.begin() + i);
    }
  };
  for (const Call& call : job_.order) {
    close_where([&](const Open& other) {
      return job_.place_of(other.receive).shares_lane(job_.place_of(call));
    });
    close_where([](Open& other) { return other.between-- == 0; });
    const Halves how = call.operation == hepOperationDispatch  ? job_.dispatches[call.index].halves
                       : call.operation == hepOperationCombine ? job_.combines[call.index].halves
                                                               : Halves{};
    calls.push_back({call.operation, call.index, how.split ? Step::kSend : Step::kWhole});
    if (how.split) open.push_back({{call.operation, call.index, Step::kReceive}, how.between});
  }
  close_where([](const Open&) { return true; });
  return calls;
}

Job JobBuilder::finish(const std::string& name) {
  job_.name = name;
  job_.order = split_calls();
  job_.overflowed.assign(num_ranks_, 0);
  job_.misrouted.assign(num_ranks_, 0);
  for (const Update& update : job_.updates)
    for (int rank = 0; rank < num_ranks_; ++rank)
      if (is_misrouted(update, rank)) job_.misrouted[rank] = 1;
  for (const Dispatch& dispatch : job_.dispatches) {
    for (int rank = 0; rank < num_ranks_; ++rank) {
      const reference::Arrivals& arrivals = job_.updates[dispatch.update].expected->at(rank);
      if (dispatch.overflow == hepOverflowError &&
          arrivals.num_rows(dispatch.layout) > dispatch.capacity[rank])
        job_.overflowed[rank] = 1;
    }
  }
  return job_;
}
