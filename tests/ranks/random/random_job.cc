// SPDX-License-Identifier: Apache-2.0
#include "random_job.h"

#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

namespace {

constexpr int kFewStageElements = 50 * 1024;  // fit in a block's stages, of whatever type
constexpr int kHeapBatches = 6;               // of tokens, that the heap holds
constexpr int64_t kMaxPaddedBytes = 8 << 20;

bool is_plain(const hepConfig_t& config) {
  return config.type == hepTypeDefault && config.combine_type == hepTypeDefault &&
         config.partial_type == hepTypeDefault && config.scale_bytes == 0;
}

// Bytes of scales that a row takes if it is quantised to FP32 scales.
int quantized_scale_bytes(int hidden) { return (hidden + 127) / 128 * 4; }

void choose_types(Random& random, hepConfig_t* config) {
  // Some rows have several slices of 2 KiB, of which the last is seldom whole, or more than a
  // segment.
  if (random.chance(10))
    config->hidden = random.pick({1040, 2064, 2576, 3088, 5136, 6160, 7168, 7184});
  else
    config->hidden = random.pick({16, 32, 48, 128, 144, 272, 512, 1024});
  config->type = random.chance(40) ? hepTypeFloat8E4M3
                                   : random.pick({hepTypeBfloat16, hepTypeFloat16, hepTypeFloat32,
                                                  hepTypeFloat8E5M2, hepTypeBytes});
  config->combine_type =
      random.pick({hepTypeDefault, hepTypeBfloat16, hepTypeFloat16, hepTypeFloat32});
  config->partial_type = random.pick({hepTypeDefault, hepTypeBfloat16, hepTypeFloat32});
  config->scale_bytes = random.pick({0, 1, 3, 4, 8, 56, 224});
  if (config->type == hepTypeFloat8E4M3 && random.chance(70))
    config->scale_bytes = quantized_scale_bytes(config->hidden) + random.pick({0, 4, 5});
}

std::vector<int64_t> random_tokens(Random& random, int num_ranks, int max_tokens) {
  const int zero_percent = random.pick({0, 15, 50, 100, 0, 15});
  std::vector<int64_t> tokens;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const int64_t some = random.chance(15) ? max_tokens : random.between(0, max_tokens);
    tokens.push_back(random.chance(zero_percent) ? 0 : some);
  }
  return tokens;
}

RoutingPattern random_pattern(Random& random, int num_experts, int num_ranks) {
  RoutingPattern pattern;
  pattern.absent_percent = random.pick({0, 0, 10, 50, 95, 100, 0, 10});
  pattern.distinct = random.chance(50);
  if (random.chance(10)) pattern.illegal_percent = pattern.excess_percent = random.pick({1, 30});
  if (random.chance(30)) {
    pattern.hot_percent = random.pick({50, 90, 100});
    const bool rank_is_hot = random.chance(50);
    pattern.num_hot = rank_is_hot ? num_experts / num_ranks : 1;
    pattern.first_hot =
        static_cast<int>(random.between(0, num_experts / pattern.num_hot - 1)) * pattern.num_hot;
  }
  return pattern;
}

// Exact, ample, too small, or none at all.
int64_t random_capacity(Random& random, int64_t needed) {
  const int kind = static_cast<int>(random.between(0, 9));
  if (kind < 5) return needed;
  if (kind < 7) return needed + random.between(1, 40);
  if (kind < 9) return random.between(0, needed);
  return 0;
}

// Adds the steps of one job.
class Steps {
 public:
  Steps(uint64_t seed, const hepConfig_t& config, int num_ranks, const Size& size)
      : seed_(seed),
        config_(config),
        num_ranks_(num_ranks),
        plain_(is_plain(config)),
        size_(size),
        heap_left_(config.heap_bytes),
        random_(seed),
        builder_(num_ranks, config, random_) {}

  Job make(const std::string& name) {
    const int num_routings = static_cast<int>(random_.between(1, 3));
    const int num_steps = static_cast<int>(random_.between(2, 6));
    if (random_.chance(50)) builder_.use_wild_pointers();
    for (int routing = 0; routing < num_routings; ++routing) {
      add_routing();
      current_.push_back(-1);
      weighted_.push_back(-1);
      tokens_.emplace_back();
      update(routing);
    }
    for (int step = 0; step < num_steps; ++step) {
      // Steps do not depend on what others drew, so that some can be left out.
      random_ = Random(seed_ + 1 + step);
      const int routing = static_cast<int>(random_.between(0, num_routings - 1));
      if (random_.chance(10) && keeps(2 * step)) update(routing);
      if (!keeps(2 * step + 1)) continue;
      if (random_.chance(50))
        dispatch(routing);
      else
        combine(routing);
    }
    return builder_.finish(name);
  }

 private:
  // On a lane of either mode.
  void add_routing() {
    const int alignment = random_.pick({1, 3, 8, 16, 50, 64, 100, 128});
    const bool low_latency = config_.low_latency_tokens > 0 && random_.chance(60);
    const int lanes = low_latency ? 4 : std::max(config_.lanes, 1);
    RoutingPlace& place = builder_.routing(
        builder_.add_routing(alignment, low_latency ? hepModeLowLatency : hepModeThroughput,
                             static_cast<int>(random_.between(0, lanes - 1))));
    low_latency_.push_back(low_latency);
    place.own_memory = random_.chance(30);
    if (random_.chance(70)) return;
    place.max_tokens = static_cast<int>(
        random_.between(1, low_latency ? config_.low_latency_tokens : config_.max_tokens));
    place.max_top_k = static_cast<int>(random_.between(1, config_.max_top_k));
  }

  // Halves where they are legal.
  Halves random_halves(int routing) {
    const Halves halves{random_.chance(60), static_cast<int>(random_.between(0, 4))};
    return low_latency_[routing] ? halves : Halves{};
  }

  bool keeps(int step) const { return (size_.steps >> step & 1) != 0; }

  void update(int routing) {
    const RoutingPlace& place = builder_.routing(routing);
    const int most = place.max_top_k != 0 ? place.max_top_k : config_.max_top_k;
    const int top_k = static_cast<int>(random_.between(1, most));
    const hepIndexType_t index_type =
        plain_ || random_.chance(70) ? random_.pick({hepIndexInt32, hepIndexInt64}) : hepIndexMap;
    std::vector<int64_t>& tokens = tokens_[routing];
    tokens = random_tokens(random_, num_ranks_,
                           low_latency_[routing] ? config_.low_latency_tokens : config_.max_tokens);
    for (int64_t& count : tokens) {
      count = std::min(count, size_.max_tokens);
      if (place.max_tokens != 0) count = std::min<int64_t>(count, place.max_tokens);
    }
    const RoutingPattern pattern = random_pattern(random_, config_.num_experts, num_ranks_);
    current_[routing] = builder_.add_update(routing, top_k, index_type, tokens, pattern);
    builder_.update(current_[routing]).query = random_.chance(40);
    weighted_[routing] = -1;
  }

  hepLayout_t random_layout() {
    return plain_ ? random_.pick({hepLayoutFlat, hepLayoutExpertMajor})
                  : random_.pick({hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded});
  }

  // An expert-padded output must not be larger than a test's memory.
  int64_t capacity(hepLayout_t layout, int64_t needed) {
    const int64_t chosen = random_capacity(random_, needed);
    if (layout != hepLayoutExpertPadded) return chosen;
    const int64_t row_bytes = int64_t{config_.hidden} * 4;
    return std::min(chosen, kMaxPaddedBytes / (config_.num_experts / num_ranks_) / row_bytes);
  }

  // On which ranks so many rows lie in registered memory, or in the heap as far as it has room
  // left.
  std::vector<Memory> random_memory(const std::vector<int64_t>& rows) {
    const int64_t bytes = *std::max_element(rows.begin(), rows.end()) * config_.hidden * 4 + 256;
    const bool heap = random_.chance(40) && bytes <= heap_left_;
    const bool registered = random_.chance(20);
    if (heap) heap_left_ -= bytes;
    const bool all = random_.chance(50);
    std::vector<Memory> memory;
    for (size_t rank = 0; rank < rows.size(); ++rank)
      memory.push_back(!all && random_.chance(30) ? kAnyMemory
                       : registered               ? kRegisteredMemory
                       : heap                     ? kHeapMemory
                                                  : kAnyMemory);
    return memory;
  }

  void dispatch(int routing) {
    const hepLayout_t layout = random_layout();
    const bool has_weights = random_.chance(60);
    const int index = builder_.add_dispatch(current_[routing], layout, has_weights);
    if (has_weights) weighted_[routing] = index;
    Dispatch& dispatch = builder_.dispatch(index);
    dispatch.x.special = random_.chance(25);
    dispatch.extras = random_.chance(75);
    dispatch.x_memory = random_memory(tokens_[routing]);
    for (int rank = 0; rank < num_ranks_; ++rank) {
      dispatch.capacity[rank] = capacity(layout, dispatch.capacity[rank]);
      dispatch.gather_capacity[rank] =
          layout == hepLayoutFlat ? random_capacity(random_, dispatch.gather_capacity[rank]) : 0;
    }
    if (!plain_) vary(&dispatch);
    if (has_weights && random_.chance(30))
      for (int rank = 0; rank < num_ranks_; ++rank)
        if (random_.chance(60)) builder_.give_dense_weights(index, rank);
    dispatch.halves = random_halves(routing);
    if (random_.chance(50)) builder_.fold_update(index);
  }

  // Of rows that fit whatever their type; 0: the config's.
  int random_hidden() {
    constexpr int kUnit = 16;
    return static_cast<int>(random_.between(0, config_.hidden / kUnit)) * kUnit;
  }

  // A type that the communicator has room for, and what goes with it.
  void vary(Dispatch* dispatch) {
    const int32_t combine_type =
        config_.combine_type != hepTypeDefault ? config_.combine_type : hepTypeBfloat16;
    const int room = std::max(reference::bytes_of(config_.type), reference::bytes_of(combine_type));
    const auto other = random_.pick({hepTypeBfloat16, hepTypeFloat16, hepTypeFloat32,
                                     hepTypeFloat8E4M3, hepTypeFloat8E5M2, hepTypeBytes});
    if (random_.chance(40) && reference::bytes_of(other) <= room) dispatch->type = other;
    const int32_t type = dispatch->type != hepTypeDefault ? dispatch->type : config_.type;
    if (random_.chance(30)) dispatch->hidden = random_hidden();
    const int hidden = dispatch->hidden != 0 ? dispatch->hidden : config_.hidden;
    const auto quantize = random_.pick({hepQuantizeFloat32, hepQuantizeUe8m0});
    if (type == hepTypeFloat8E4M3 && random_.chance(60) &&
        config_.scale_bytes >= quantized_scale_bytes(hidden))
      dispatch->quantize = quantize;
    dispatch->has_scales =
        config_.scale_bytes > 0 && dispatch->quantize == hepQuantizeNone && random_.chance(60);
    const int element = random_.pick({0, 1, 2, 4});
    if (element != 0 && config_.scale_bytes % element == 0) dispatch->scale_element_bytes = element;
    if (random_.chance(25)) dispatch->overflow = hepOverflowError;
  }

  void combine(int routing) {
    const hepLayout_t layout = random_layout();
    auto mode = random_.pick({hepWeightsNone, hepWeightsDispatched, hepWeightsRow});
    if (mode == hepWeightsDispatched && weighted_[routing] < 0) mode = hepWeightsNone;
    Combine& combine =
        builder_.combine(builder_.add_combine(current_[routing], layout, mode, weighted_[routing]));
    combine.y.special = random_.chance(25);
    for (int64_t& rows : combine.capacity) rows = capacity(layout, rows);
    std::vector<int64_t> rows = combine.capacity;
    if (layout == hepLayoutExpertPadded)
      for (int64_t& count : rows) count *= config_.num_experts / num_ranks_;
    combine.y_memory = random_memory(rows);
    combine.halves = random_halves(routing);
    if (plain_) return;
    combine.type = random_.pick({hepTypeDefault, hepTypeBfloat16, hepTypeFloat16, hepTypeFloat32});
    combine.partial_type = random_.pick({hepTypeDefault, hepTypeBfloat16, hepTypeFloat32});
    if (config_.partial_type != hepTypeFloat32) combine.partial_type = hepTypeDefault;
    combine.has_gradients = random_.chance(40);
    for (char& dense : combine.dense_gradients) dense = random_.chance(40);
    if (random_.chance(30)) combine.hidden = random_hidden();
  }

  const uint64_t seed_;
  const hepConfig_t& config_;
  const int num_ranks_;
  const bool plain_;
  const Size size_;
  int64_t heap_left_;
  Random random_;
  JobBuilder builder_;
  std::vector<char> low_latency_;        // by routing
  std::vector<int> current_, weighted_;  // by routing: its latest update, and dispatch with weights
  std::vector<std::vector<int64_t>> tokens_;  // of the latest update, by routing and rank
};

const char* layout_name(hepLayout_t layout) {
  return layout == hepLayoutFlat          ? "flat"
         : layout == hepLayoutExpertMajor ? "expert-major"
                                          : "expert-padded";
}

std::string list(const std::vector<int64_t>& values) {
  std::ostringstream text;
  for (const int64_t value : values) text << (text.tellp() == 0 ? "" : ",") << value;
  return text.str();
}

std::string describe(const RoutingPlace& place) {
  std::ostringstream text;
  text << (place.mode == hepModeLowLatency ? "low-latency lane " : "lane ") << place.lane
       << ", alignment " << place.alignment << ", own memory " << place.own_memory << ", at most "
       << place.max_tokens << " tokens, top-" << place.max_top_k;
  return text.str();
}

std::string describe(const Job& job, const Update& update) {
  std::vector<int64_t> tokens;
  for (int rank = 0; rank < update.expected->num_ranks(); ++rank)
    tokens.push_back(update.expected->batch(rank).num_tokens);
  std::ostringstream text;
  text << "update of routing " << update.routing << " (" << describe(job.routings[update.routing])
       << "): K=" << update.expected->top_k() << ", index type " << update.index_types.front()
       << ", tokens " << list(tokens);
  return text.str();
}

std::string describe(const Job& job, const Dispatch& dispatch) {
  std::ostringstream text;
  text << "dispatch on routing " << job.updates[dispatch.update].routing << ": "
       << layout_name(dispatch.layout) << ", type " << dispatch.type << ", hidden "
       << dispatch.hidden << ", quantize " << dispatch.quantize << ", scales "
       << dispatch.has_scales << " by " << dispatch.scale_element_bytes << ", weights "
       << dispatch.has_weights << ", overflow " << dispatch.overflow << ", capacity "
       << list(dispatch.capacity);
  if (dispatch.does_update) text << ", with the " << describe(job, job.updates[dispatch.update]);
  return text.str();
}

std::string describe(const Job& job, const Combine& combine) {
  std::ostringstream text;
  text << "combine on routing " << job.updates[combine.update].routing << ": "
       << layout_name(combine.layout) << ", type " << combine.type << ", hidden " << combine.hidden
       << ", partial type " << combine.partial_type << ", weight mode " << combine.mode
       << ", gradients " << combine.has_gradients << ", capacity " << list(combine.capacity);
  return text.str();
}

}  // namespace

hepConfig_t random_config(Random& random, int num_ranks, bool plain) {
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  const int most = std::max(1, (random.chance(10) ? 256 : 64) / num_ranks);
  config.num_experts = num_ranks * static_cast<int>(random.between(1, most));
  config.max_top_k =
      static_cast<int>(random.chance(10) ? random.between(17, 32) : random.between(1, 16));
  config.hidden = random.chance(5) ? 7168 : random.pick({8, 16, 24, 64, 136, 512, 1024});
  config.max_tokens =
      static_cast<int>(random.chance(20) ? random.between(1, 8) : random.between(1, 300));
  if (!plain) choose_types(random, &config);
  config.lanes = num_ranks > 8 ? random.pick({0, 2}) : random.pick({0, 0, 1, 2, 4});
  if (random.chance(70))
    config.low_latency_tokens = static_cast<int>(random.between(1, num_ranks > 8 ? 40 : 130));
  const int64_t most_tokens = std::max(config.max_tokens, config.low_latency_tokens);
  config.heap_bytes = kHeapBatches * (most_tokens * config.hidden * 4 + 256);
  config.timeout_ms = config.init_timeout_ms = kTimeoutMs;
  config.sm_budget = random.pick({0, 4, 8, 13});
  config.low_latency_blocks = random.pick({2, 5, 12, 13});
  if (random.chance(50)) {
    config.routing_threads = random.pick({0, 64, 128, 512});
    config.routing_blocks = random.pick({0, 1, 2, 3});
    config.dispatch_stages = random.pick({0, 2, 3, 5, 10, 16, 20});
    if (config.dispatch_stages * config.hidden > kFewStageElements) config.dispatch_stages = 3;
    config.dispatch_blocks = random.pick({0, 1, 3, config.sm_budget});
    config.combine_load_stages = random.pick({0, 2, 3});
    config.combine_store_stages = random.pick({0, 2, 4});
    config.combine_blocks = random.pick({0, 2, 3, 4, config.sm_budget});
  }
  return config;
}

Job random_job(uint64_t seed, const hepConfig_t& config, int num_ranks, const Size& size) {
  return Steps(seed, config, num_ranks, size).make("random job");
}

std::string describe(const Job& job) {
  std::ostringstream text;
  for (const auto& [operation, index, step] : job.order)
    text << "\n  "
         << (step == Step::kSend      ? "first half of "
             : step == Step::kReceive ? "second half of "
                                      : "")
         << (operation == hepOperationRouting    ? describe(job, job.updates[index])
             : operation == hepOperationDispatch ? describe(job, job.dispatches[index])
                                                 : describe(job, job.combines[index]));
  return text.str();
}
