// SPDX-License-Identifier: Apache-2.0
#include "config/config.h"

#include <algorithm>
#include <cinttypes>

#include "config/abi.h"
#include "config/fields.h"
#include "config/ranks.h"
#include "config/settings.h"
#include "protocol/data_type.h"
#include "protocol/network_layout.h"
#include "protocol/shape.h"
#include "protocol/topology.h"

namespace hep {
namespace {

constexpr int kWarpThreads = 32;
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

// Returns the bytes of the largest row that a dispatch may carry. It carries rows of `type`, and in
// a backward pass rows of combine, as far as they keep to the limit.
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

void set_defaults(hepConfig_t* config) {
  const auto set = [](int32_t* field, int32_t value) {
    if (*field == 0) *field = value;
  };
  for (const Field& field : kFields)
    if (field.default_value != 0 && value_of(field, *config) == 0)
      set_field(field, field.default_value, config);
  set(&config->combine_type, is_summable(config->type) ? config->type : hepTypeBfloat16);
}

int32_t or_default(int32_t value, int32_t chosen) { return value != 0 ? value : chosen; }

}  // namespace

Status resolve_config(const hepConfig_t* theirs, int num_ranks, hepConfig_t* resolved) {
  HEP_TRY(check_num_ranks(num_ranks));
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  HEP_TRY(read_struct(theirs, &config, HEP_CONFIG_MAGIC, "hepConfig_t"));
  HEP_TRY(apply_environment(&config));
  HEP_TRY(check_ranges(config));
  set_defaults(&config);
  HEP_TRY(check_shape(config, num_ranks));
  HEP_TRY(check_domains(config, num_ranks));
  HEP_TRY(check_tuning(config));
  *resolved = config;
  return Status();
}

int32_t wanted_init_timeout_ms(const hepConfig_t* theirs) {
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  if (!read_struct(theirs, &config, HEP_CONFIG_MAGIC, "hepConfig_t").ok())
    config = HEP_CONFIG_INITIALIZER;
  static_cast<void>(apply_environment(&config));
  const bool legal = config.init_timeout_ms > 0 && config.init_timeout_ms <= kMaxTimeoutMs;
  return legal ? config.init_timeout_ms : kDefaultInitTimeoutMs;
}

Shape make_shape(const hepConfig_t& config, int num_ranks) {
  Shape shape{};
  shape.num_ranks = num_ranks;
  shape.num_experts = config.num_experts;
  shape.max_tokens = config.max_tokens;
  shape.max_top_k = config.max_top_k;
  shape.row_bytes = most_row_bytes(config);
  shape.partial_row_bytes = config.hidden * element_bytes(config.partial_type);
  shape.scale_bytes = config.scale_bytes;
  shape.heap_bytes = config.heap_bytes;
  return shape;
}

Topology make_topology(const hepConfig_t& config, int num_ranks) {
  return {num_ranks, config.domain_size != 0 ? config.domain_size : num_ranks};
}

Status check_domains(const hepConfig_t& config, int num_ranks) {
  const std::string name = setting_origin("domain_size");
  const Topology topology = make_topology(config, num_ranks);
  HEP_TRY(check_domain_size(name.c_str(), topology.domain_size, num_ranks));
  const int others = topology.num_domains() - 1;
  if (others == 0) return Status();
  if (config.backend == hepBackendCuda)
    return error(
        hepErrorUnsupported,
        "%s is %d, which makes %d domains of %d ranks, but the cuda backend serves only one "
        "domain in this version",
        name.c_str(), topology.domain_size, others + 1, num_ranks);
  const uint64_t least =
      others * NetworkLayout::least_bytes(make_shape(config, num_ranks), topology.domain_size);
  if (static_cast<uint64_t>(config.network_bytes) < least)
    return error(hepErrorInvalidArgument,
                 "%s is %" PRId64 ", but a row for each of %d other domains takes %" PRIu64
                 " bytes",
                 setting_origin("network_bytes").c_str(), config.network_bytes, others, least);
  return Status();
}

Budget make_budget(const hepConfig_t& config, hepMode_t mode) {
  const bool low_latency = mode == hepModeLowLatency;
  const int32_t sms =
      low_latency ? or_default(config.low_latency_blocks, config.sm_budget) : config.sm_budget;
  const auto blocks = [&](int32_t wanted) {
    if (low_latency) wanted = config.low_latency_blocks;
    return wanted != 0 ? BlockBudget{wanted, true} : BlockBudget{sms, false};
  };
  Budget budget{};
  budget.routing_threads = or_default(config.routing_threads, kDefaultRoutingThreads);
  budget.routing_blocks = low_latency || config.routing_blocks == 0
                              ? std::min(sms, kMaxDefaultRoutingBlocks)
                              : config.routing_blocks;
  budget.dispatch = blocks(config.dispatch_blocks);
  budget.combine = blocks(config.combine_blocks);
  budget.dispatch_stages = config.dispatch_stages;
  budget.combine_load_stages = config.combine_load_stages;
  budget.combine_store_stages = config.combine_store_stages;
  return budget;
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
