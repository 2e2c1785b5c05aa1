// SPDX-License-Identifier: Apache-2.0
#include "config/config.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>

#include "config/abi.h"
#include "config/fields.h"
#include "config/ranks.h"
#include "config/settings.h"
#include "protocol/data_type.h"
#include "protocol/shape.h"

namespace hep {
namespace {

constexpr int kWarpThreads = 32;
constexpr int kDefaultLowLatencyBlocks = 32;

// Shared memory of a block that rows in flight may take; the rest is for barriers and records.
constexpr int64_t kStageBytes = 220 * 1024;
constexpr int kMinDispatchStages = 2;
constexpr int kFewDispatchStages = 4;  // chosen at least, if they fit
constexpr int kMaxDispatchStages = 64;
constexpr int kDefaultRoutingThreads = 1024;
constexpr int kMaxDefaultRoutingBlocks = 16;

Status check_row(const hepConfig_t& config) {
  const int64_t bytes = int64_t{config.hidden} * element_bytes(config.type);
  if (bytes <= 0 || bytes > kMaxRowBytes || bytes % kRowGranularity != 0)
    return error(hepErrorInvalidArgument,
                 "config field hidden is %d, which makes rows of %" PRId64
                 " bytes, but a row must be a multiple of %" PRId64 " bytes, to %" PRId64,
                 config.hidden, bytes, kRowGranularity, kMaxRowBytes);
  HEP_TRY(check_row_granularity("config field combine_type", config.hidden, config.combine_type));
  return check_row_granularity("config field partial_type", config.hidden, config.partial_type);
}

// Of the rows that a dispatch may carry: those of `type`, and those of combine, which a dispatch
// carries in a backward pass, as far as they keep to the limit.
int32_t most_row_bytes(const hepConfig_t& config) {
  const int64_t row_bytes = int64_t{config.hidden} * element_bytes(config.type);
  const int64_t combine_row_bytes = int64_t{config.hidden} * element_bytes(config.combine_type);
  const bool larger = combine_row_bytes > row_bytes && combine_row_bytes <= kMaxRowBytes;
  return static_cast<int32_t>(larger ? combine_row_bytes : row_bytes);
}

Status check_shape(const hepConfig_t& config, int num_ranks) {
  HEP_TRY(check_summable("config field combine_type", config.combine_type));
  HEP_TRY(check_partial_type("config field partial_type", config.partial_type));
  HEP_TRY(check_row(config));
  if (config.num_experts % num_ranks != 0)
    return error(hepErrorInvalidArgument,
                 "config field num_experts is %d, but must be a multiple of num_ranks, %d",
                 config.num_experts, num_ranks);
  return Status();
}

Status check_domain(const hepConfig_t& config, int num_ranks) {
  if (config.domain_size > num_ranks)
    return error(hepErrorInvalidArgument, "%s is %d, but must be at most num_ranks, %d",
                 setting_origin("domain_size").c_str(), config.domain_size, num_ranks);
  if (config.domain_size != num_ranks)
    return error(hepErrorUnsupported,
                 "%s is %d, but this version serves only one domain of all %d ranks",
                 setting_origin("domain_size").c_str(), config.domain_size, num_ranks);
  return Status();
}

Status check_blocks(const char* field, int32_t blocks, int32_t sm_budget) {
  if (blocks <= sm_budget) return Status();
  return error(hepErrorInvalidArgument, "%s is %d, but must be at most %s, %d",
               setting_origin(field).c_str(), blocks, setting_origin("sm_budget").c_str(),
               sm_budget);
}

Status check_tuning(const hepConfig_t& config) {
  if (config.routing_threads % kWarpThreads != 0)
    return error(hepErrorInvalidArgument, "%s is %d, but must be a multiple of %d",
                 setting_origin("routing_threads").c_str(), config.routing_threads, kWarpThreads);
  HEP_TRY(check_blocks("routing_blocks", config.routing_blocks, config.sm_budget));
  HEP_TRY(check_blocks("dispatch_blocks", config.dispatch_blocks, config.sm_budget));
  HEP_TRY(check_blocks("combine_blocks", config.combine_blocks, config.sm_budget));
  const int64_t row_bytes = most_row_bytes(config);
  if (config.dispatch_stages * row_bytes > kStageBytes)
    return error(hepErrorInvalidArgument,
                 "%s is %d, but that many rows of %" PRId64 " bytes do not fit in the %" PRId64
                 " bytes of shared memory for them",
                 setting_origin("dispatch_stages").c_str(), config.dispatch_stages, row_bytes,
                 kStageBytes);
  return Status();
}

void set_defaults(hepConfig_t* config, int num_ranks) {
  const auto set = [](int32_t* field, int32_t value) {
    if (*field == 0) *field = value;
  };
  set(&config->low_latency_blocks,
      config->sm_budget != 0 ? config->sm_budget : kDefaultLowLatencyBlocks);
  for (const Field& field : kFields)
    if (field.default_value != 0 && value_of(field, *config) == 0)
      set_field(field, field.default_value, config);
  set(&config->combine_type, is_summable(config->type) ? config->type : hepTypeBfloat16);
  set(&config->domain_size, num_ranks);
}

int32_t or_default(int32_t value, int32_t chosen) { return value != 0 ? value : chosen; }

// GB/s, measured on H200s: what a block forwards, what it reads where it reduces, what NVLink takes.
constexpr double kForwardRate = 41, kReduceRate = 63, kLinkRate = 344;

// The blocks of the first half go evenly to all destinations, if there are enough: see combine/send.cuh.
int32_t spread(double wanted, int32_t blocks, int32_t destinations) {
  const auto count = static_cast<int32_t>(std::lround(std::min<double>(blocks, wanted)));
  if (count < destinations || destinations == 0) return std::min(count, destinations);
  const int32_t fewer = count - count % destinations, more = fewer + destinations;
  return more <= blocks && more - count < count - fewer ? more : fewer;
}

// As many blocks for each half of combine as fill NVLink, within the budget. More would not be faster,
// and blocks that wait for partial sums slow the others down: on 4 H200s, 9 blocks that forward and 23
// that only add took six times as long as 9 and 7.
struct CombinePlanner {
  int32_t budget;  // of blocks
  bool fixed;      // all of them are to be used,
  bool all_first;  // and in the first half, too: with few tokens the halves follow one another
  int num_ranks;
  double partials;  // of a token, with uniform routing: R * (1 - (1 - 1/R)^K)

  CombinePlanner(const hepConfig_t& config, int ranks, hepMode_t mode)
      : budget(or_default(config.combine_blocks, config.sm_budget)),
        fixed(config.combine_blocks != 0 || mode == hepModeLowLatency),
        all_first(mode == hepModeLowLatency),
        num_ranks(ranks),
        partials(ranks * (1 - std::pow(1 - 1.0 / ranks, config.max_top_k))) {}

  CombineGrid in_place() const { return {limited(2 * reducers(partials)), 0}; }
  CombineGrid forward() const {
    return grid(first_half(kLinkRate / kForwardRate, num_ranks - 1), partials / num_ranks);
  }
  CombineGrid reduce(double rows_of_token) const {
    const double own = rows_of_token / num_ranks;
    return grid(first_half(reducers(rows_of_token - own), std::max(num_ranks - 1, 1)), own);
  }

 private:
  int32_t first_half(double wanted, int32_t destinations) const {
    if (all_first) return destinations == 0 ? 0 : budget;
    return spread(wanted, budget, destinations);
  }

  // The second half reads what the peers sent, and this rank's own rows.
  CombineGrid grid(int32_t first_half, double own_rows) const {
    return {limited(first_half + reducers(partials - partials / num_ranks + own_rows)), first_half};
  }

  // Blocks that read so many rows of each token while NVLink carries its partial sums.
  double reducers(double rows_of_token) const {
    if (num_ranks == 1) return budget;
    const double sent = partials * (num_ranks - 1) / num_ranks;
    return kLinkRate / kReduceRate * rows_of_token / sent;
  }

  int32_t limited(double wanted) const {
    return fixed ? budget : static_cast<int32_t>(std::lround(std::min<double>(budget, wanted)));
  }
};

// More bytes on their way to a GPU than NVLink needs slow it down: on H200s, with 24 blocks of 15 rows
// of 14 KiB 409 GB/s arrive, with 24 of 6 423. In expert-major a stage is held longer, for each of its
// places.
int32_t default_dispatch_stages(int64_t row_bytes, int32_t blocks, int layout) {
  const int64_t in_flight = (layout == hepLayoutFlat ? 2240 : 3360) * int64_t{1024};
  const int64_t wanted = std::max<int64_t>(in_flight / (blocks * row_bytes), kFewDispatchStages);
  return static_cast<int32_t>(std::clamp<int64_t>(
      wanted, kMinDispatchStages, std::min<int64_t>(kStageBytes / row_bytes, kMaxDispatchStages)));
}

}  // namespace

Status resolve_config(const hepConfig_t* theirs, int num_ranks, hepConfig_t* resolved) {
  HEP_TRY(check_num_ranks(num_ranks));
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  HEP_TRY(read_struct(theirs, &config, HEP_CONFIG_MAGIC, "hepConfig_t"));
  HEP_TRY(apply_environment(&config));
  HEP_TRY(check_ranges(config));
  set_defaults(&config, num_ranks);
  HEP_TRY(check_shape(config, num_ranks));
  HEP_TRY(check_domain(config, num_ranks));
  HEP_TRY(check_tuning(config));
  *resolved = config;
  return Status();
}

int32_t wanted_init_timeout_ms(const hepConfig_t* theirs) {
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  if (!read_struct(theirs, &config, HEP_CONFIG_MAGIC, "hepConfig_t").ok())
    config = HEP_CONFIG_INITIALIZER;
  const bool readable = apply_environment(&config).ok();
  const bool legal = config.init_timeout_ms > 0 && config.init_timeout_ms <= kMaxTimeoutMs;
  return readable && legal ? config.init_timeout_ms : kDefaultInitTimeoutMs;
}

Shape make_shape(const hepConfig_t& config, int num_ranks) {
  Shape shape{};
  shape.num_ranks = num_ranks;
  shape.num_experts = config.num_experts;
  shape.max_tokens = config.max_tokens;
  shape.max_top_k = config.max_top_k;
  shape.hidden = config.hidden;
  shape.row_bytes = most_row_bytes(config);
  shape.partial_row_bytes = config.hidden * element_bytes(config.partial_type);
  shape.scale_bytes = config.scale_bytes;
  shape.heap_bytes = config.heap_bytes;
  return shape;
}

Plan make_plan(const hepConfig_t& given, int num_ranks, hepMode_t mode) {
  hepConfig_t config = given;
  if (mode == hepModeLowLatency) {
    config.sm_budget = given.low_latency_blocks;
    config.routing_blocks = config.dispatch_blocks = config.combine_blocks = 0;
  }
  Plan plan{};
  plan.routing_threads = or_default(config.routing_threads, kDefaultRoutingThreads);
  plan.routing_blocks =
      or_default(config.routing_blocks, std::min(config.sm_budget, kMaxDefaultRoutingBlocks));
  plan.dispatch_blocks = or_default(config.dispatch_blocks, config.sm_budget);
  plan.dispatch_stages = config.dispatch_stages;
  const CombinePlanner combine(config, num_ranks, mode);
  plan.combine_in_place = combine.in_place();
  plan.combine_forward = combine.forward();
  plan.combine_reduce[hepLayoutFlat] = combine.reduce(combine.partials);
  plan.combine_reduce[hepLayoutExpertMajor] = combine.reduce(config.max_top_k);
  plan.combine_blocks = std::max({plan.combine_in_place.blocks, plan.combine_forward.blocks,
                                  plan.combine_reduce[hepLayoutFlat].blocks,
                                  plan.combine_reduce[hepLayoutExpertMajor].blocks});
  plan.combine_load_stages = config.combine_load_stages;
  plan.combine_store_stages = config.combine_store_stages;
  return plan;
}

int32_t dispatch_stages(const Plan& plan, int64_t row_bytes, int layout) {
  return or_default(plan.dispatch_stages,
                    default_dispatch_stages(row_bytes, plan.dispatch_blocks, layout));
}

std::string config_difference(const hepConfig_t& a, const hepConfig_t& b) {
  for (const Field& field : kFields) {
    if (field.kind == Field::Kind::kPointer || value_of(field, a) == value_of(field, b)) continue;
    return std::string(field.name) + " (" + std::to_string(value_of(field, a)) + " and " +
           std::to_string(value_of(field, b)) + ")";
  }
  return "";
}

}  // namespace hep
