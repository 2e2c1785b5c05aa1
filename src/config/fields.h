// SPDX-License-Identifier: Apache-2.0
// The fields of hepConfig_t, one row each: range, default, comparison between ranks, environment
// variable and its documentation. A new field goes into the public header and into this table.
#pragma once

#include <hybridep.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <type_traits>
#include <utility>

#include "protocol/shape.h"

namespace hep {

constexpr int kDefaultTopK = 8;
constexpr int kDefaultTimeoutMs = 30000;
constexpr int kDefaultInitTimeoutMs = 30000;
constexpr int kMaxTimeoutMs = 3600000;
constexpr int kDefaultSmBudget = 64;
constexpr int kMaxSmBudget = kMaxBlocks;
constexpr int kMaxStages = 32;
constexpr int kMaxStoreStages = 4;
constexpr int64_t kMaxHeapBytes = int64_t{1} << 40;
constexpr int64_t kDefaultNetworkBytes = int64_t{64} << 20;
constexpr int64_t kMaxNetworkBytes = int64_t{1} << 32;

struct Field {
  enum class Kind {
    kNumber,     // any value of its range
    kDefaulted,  // a value of its range, or 0 for the default
    kChoice,     // the index of a word
    kPointer     // anything; the only kind that ranks do not compare
  };

  const char* name;
  size_t offset, bytes;
  Kind kind;
  int64_t min = 0, max = 0;
  int64_t default_value = 0;       // 0: derived from other fields, or chosen by the kernels' plan
  const char* variable = nullptr;  // of the environment, overrides the field; NULL: none
  const char* documentation = nullptr;
  const char* choices = nullptr;  // "auto|cuda|host": their values are 0, 1, 2; NULL: not a choice
};

#define HEP_FIELD(name) #name, offsetof(hepConfig_t, name), sizeof(hepConfig_t::name)

// In the order of the struct. Fields of the shape (hidden, tokens, experts, top-k) have no
// variable: they must agree with the buffers that the caller has already sized. The header
// documents all.
inline constexpr Field kFields[] = {
    {HEP_FIELD(backend), Field::Kind::kChoice, 0, 2, 0, "HEP_BACKEND",
     "what runs the operations; auto takes cuda where a usable device exists, otherwise host",
     "auto|cuda|host"},
    {HEP_FIELD(type), Field::Kind::kDefaulted, 1, hepTypeBytes, hepTypeBfloat16},
    {HEP_FIELD(max_tokens), Field::Kind::kNumber, 1, kMaxTokens},
    {HEP_FIELD(hidden), Field::Kind::kNumber, 1, kMaxRowBytes},
    {HEP_FIELD(num_experts), Field::Kind::kNumber, 1, kMaxExperts},
    {HEP_FIELD(max_top_k), Field::Kind::kDefaulted, 1, kMaxTopK, kDefaultTopK},
    {HEP_FIELD(scale_bytes), Field::Kind::kNumber, 0, kMaxScaleBytes},
    {HEP_FIELD(low_latency_tokens), Field::Kind::kNumber, 0, kMaxTokens},
    {HEP_FIELD(heap_bytes), Field::Kind::kNumber, 0, kMaxHeapBytes},
    {HEP_FIELD(timeout_ms), Field::Kind::kDefaulted, 1, kMaxTimeoutMs, kDefaultTimeoutMs,
     "HEP_TIMEOUT_MS", "bound of every wait for a peer on a communicator, in milliseconds"},
    {HEP_FIELD(sm_budget), Field::Kind::kDefaulted, 2, kMaxSmBudget, kDefaultSmBudget,
     "HEP_SM_BUDGET",
     "most SMs (blocks) that an operation occupies; it takes the fewest that are nearly as fast"},
    {HEP_FIELD(lanes), Field::Kind::kDefaulted, 1, kMaxLanes, 1, "HEP_LANES",
     "independent sequences of operations, those of low latency not counted"},
    {HEP_FIELD(domain_size), Field::Kind::kDefaulted, 1, kMaxRanks, 0, "HEP_DOMAIN_SIZE",
     "ranks that map each other's memory; a network joins several such domains"},
    {HEP_FIELD(routing_threads), Field::Kind::kDefaulted, 64, 1024, 0, "HEP_ROUTING_THREADS",
     "threads a block of the routing kernel, a multiple of 32"},
    {HEP_FIELD(routing_blocks), Field::Kind::kDefaulted, 1, kMaxSmBudget, 0, "HEP_ROUTING_BLOCKS",
     "blocks of the routing kernel, within the SM budget"},
    {HEP_FIELD(dispatch_stages), Field::Kind::kDefaulted, 2, kMaxStages, 0, "HEP_DISPATCH_STAGES",
     "rows in flight in a dispatch block, which must fit there"},
    {HEP_FIELD(dispatch_blocks), Field::Kind::kDefaulted, 1, kMaxSmBudget, 0, "HEP_DISPATCH_BLOCKS",
     "blocks of the dispatch kernel, within the SM budget"},
    {HEP_FIELD(combine_load_stages), Field::Kind::kDefaulted, 2, kMaxStages, 0,
     "HEP_COMBINE_LOAD_STAGES", "most rows in flight towards a reducer of combine; as many as fit"},
    {HEP_FIELD(combine_store_stages), Field::Kind::kDefaulted, 1, kMaxStoreStages, 0,
     "HEP_COMBINE_STORE_STAGES", "rows in flight to a peer where combine reduces nothing"},
    {HEP_FIELD(combine_blocks), Field::Kind::kDefaulted, 2, kMaxSmBudget, 0, "HEP_COMBINE_BLOCKS",
     "blocks of the combine kernel, both halves together, within the SM budget"},
    {HEP_FIELD(log), Field::Kind::kPointer},
    {HEP_FIELD(log_context), Field::Kind::kPointer},
    {HEP_FIELD(combine_type), Field::Kind::kDefaulted, 1, hepTypeBytes, 0},
    {HEP_FIELD(partial_type), Field::Kind::kDefaulted, 1, hepTypeBytes, hepTypeBfloat16},
    {HEP_FIELD(low_latency_blocks), Field::Kind::kDefaulted, 2, kMaxSmBudget, 0,
     "HEP_LOW_LATENCY_BLOCKS",
     "SMs (blocks) that a low-latency operation occupies; automatic: as HEP_SM_BUDGET says"},
    {HEP_FIELD(init_timeout_ms), Field::Kind::kDefaulted, 1, kMaxTimeoutMs, kDefaultInitTimeoutMs,
     "HEP_INIT_TIMEOUT_MS", "bound of the creation of a communicator, in milliseconds"},
    {HEP_FIELD(network_bytes), Field::Kind::kDefaulted, 1, kMaxNetworkBytes, kDefaultNetworkBytes,
     "HEP_NETWORK_BYTES", "bytes of each of the four rings of a lane towards the other domains"},
};

#undef HEP_FIELD

// Returns the number of a struct's members. It is the number of values that can initialise the
// struct.
struct AnyValue {
  template <typename T>
  operator T() const;
};
template <typename Struct, typename Values, typename = void>
struct Takes : std::false_type {};
template <typename Struct, size_t... I>
struct Takes<Struct, std::index_sequence<I...>,
             std::void_t<decltype(Struct{(static_cast<void>(I), AnyValue())...})>>
    : std::true_type {};
template <typename Struct, size_t kCount = 0>
constexpr size_t count_members() {
  if constexpr (Takes<Struct, std::make_index_sequence<kCount + 1>>::value)
    return count_members<Struct, kCount + 1>();
  else
    return kCount;
}

constexpr bool in_order_of_struct() {
  size_t end = offsetof(hepConfig_t, backend);
  for (const Field& field : kFields) {
    if (field.offset < end) return false;
    end = field.offset + field.bytes;
  }
  return true;
}

// These two say together: every member of the struct has its row, except size, magic and version.
static_assert(in_order_of_struct(), "the rows of kFields are not in the order of hepConfig_t");
static_assert(count_members<hepConfig_t>() == std::size(kFields) + 3,
              "a field of hepConfig_t has no row in kFields");

// Returns the value of a field that is not a pointer.
inline int64_t value_of(const Field& field, const hepConfig_t& config) {
  const char* const from = reinterpret_cast<const char*>(&config) + field.offset;
  int64_t wide = 0;
  int32_t narrow = 0;
  const bool is_wide = field.bytes == sizeof wide;
  std::memcpy(is_wide ? static_cast<void*>(&wide) : &narrow, from, field.bytes);
  return is_wide ? wide : narrow;
}

inline void set_field(const Field& field, int64_t value, hepConfig_t* config) {
  const auto narrow = static_cast<int32_t>(value);
  const bool is_wide = field.bytes == sizeof value;
  std::memcpy(reinterpret_cast<char*>(config) + field.offset,
              is_wide ? static_cast<const void*>(&value) : &narrow, field.bytes);
}

}  // namespace hep
