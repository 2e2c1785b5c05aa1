// SPDX-License-Identifier: Apache-2.0
#include "params.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "layout.h"
#include "log.h"

namespace hep {
namespace {

constexpr const char* kMemoryKinds = "auto|descriptor|ipc|fabric";
constexpr const char* kBackends = "auto|cuda|host";
constexpr const char* kLogLevels = "none|error|warning|info|debug";

constexpr int kMaxSmBudget = kMaxBlocks;
constexpr int kMaxStages = 32;
constexpr int kMaxStoreStages = 4;

constexpr auto kInteger = Setting::Kind::kInteger;
constexpr auto kChoice = Setting::Kind::kChoice;
constexpr auto kText = Setting::Kind::kText;

#define FIELD(name) #name, offsetof(hepConfig_t, name)
#define NO_FIELD nullptr, 0

// The shape of the work (hidden, tokens, experts, top-k) has no variable: it must agree with the
// buffers that the caller has already sized.
constexpr Setting kSettings[] = {
    {"HEP_BACKEND", FIELD(backend), kChoice, 0, 2, 0, kBackends,
     "what runs the operations; auto takes cuda where a usable device exists, otherwise host"},
    {"HEP_TIMEOUT_MS", FIELD(timeout_ms), kInteger, 1, kMaxTimeoutMs, kDefaultTimeoutMs, nullptr,
     "bound of every wait for a peer on a communicator, in milliseconds"},
    {"HEP_INIT_TIMEOUT_MS", FIELD(init_timeout_ms), kInteger, 1, kMaxTimeoutMs,
     kDefaultInitTimeoutMs, nullptr, "bound of the creation of a communicator, in milliseconds"},
    {"HEP_SM_BUDGET", FIELD(sm_budget), kInteger, 2, kMaxSmBudget, kDefaultSmBudget, nullptr,
     "most SMs (blocks) that an operation occupies"},
    {"HEP_LANES", FIELD(lanes), kInteger, 1, kMaxLanes, 1, nullptr,
     "independent sequences of operations, those of low latency not counted"},
    {"HEP_DOMAIN_SIZE", FIELD(domain_size), kInteger, 1, kMaxRanks, 0, nullptr,
     "ranks that can map each other's memory; less than all are not served yet"},
    {"HEP_ROUTING_THREADS", FIELD(routing_threads), kInteger, 64, 1024, 0, nullptr,
     "threads a block of the routing kernel, a multiple of 32"},
    {"HEP_ROUTING_BLOCKS", FIELD(routing_blocks), kInteger, 1, kMaxSmBudget, 0, nullptr,
     "blocks of the routing kernel, within the SM budget"},
    {"HEP_DISPATCH_STAGES", FIELD(dispatch_stages), kInteger, 2, kMaxStages, 0, nullptr,
     "rows in flight in a dispatch block, which must fit there"},
    {"HEP_DISPATCH_BLOCKS", FIELD(dispatch_blocks), kInteger, 1, kMaxSmBudget, 0, nullptr,
     "blocks of the dispatch kernel, within the SM budget"},
    {"HEP_COMBINE_LOAD_STAGES", FIELD(combine_load_stages), kInteger, 2, kMaxStages, 0, nullptr,
     "most rows in flight towards a reducer of combine; as many as fit"},
    {"HEP_COMBINE_STORE_STAGES", FIELD(combine_store_stages), kInteger, 1, kMaxStoreStages, 0,
     nullptr, "rows in flight to a peer where combine reduces nothing"},
    {"HEP_COMBINE_BLOCKS", FIELD(combine_blocks), kInteger, 2, kMaxSmBudget, 0, nullptr,
     "blocks of the combine kernel, both halves together, within the SM budget"},
    {"HEP_LOW_LATENCY_BLOCKS", FIELD(low_latency_blocks), kInteger, 2, kMaxSmBudget, 0, nullptr,
     "most SMs (blocks) that a low-latency operation occupies; HEP_SM_BUDGET if set, otherwise 32"},
    {"HEP_LOG", NO_FIELD, kChoice, 0, 4, hepLogWarning, kLogLevels,
     "most detailed level of messages that are delivered; read once in a process"},
    {"HEP_MEMORY", NO_FIELD, kChoice, 0, 3, 0, kMemoryKinds,
     "how ranks map each other's device memory: file descriptors, cudaIpc or fabric handles; auto "
     "probes"},
    {"HEP_RENDEZVOUS_ADDRESS", NO_FIELD, kText, 0, 0, 0, nullptr,
     "numeric address of this machine at which a rendezvous and processes that connect listen; "
     "unset: all"},
    {"HEP_RENDEZVOUS_TIMEOUT_MS", NO_FIELD, kInteger, 1, kMaxTimeoutMs, kDefaultRendezvousTimeoutMs,
     nullptr, "how long a rendezvous that hepGetUniqueId opened waits for its ranks"},
    {"HEP_NCCL_LIBRARY", NO_FIELD, kText, 0, 0, 0, nullptr,
     "file to open where the process has not loaded NCCL itself; unset: libnccl.so.2"},
};

#undef FIELD
#undef NO_FIELD

const Setting* find_setting(const char* name) {
  for (const Setting& setting : kSettings)
    if (std::strcmp(setting.name, name) == 0) return &setting;
  return nullptr;
}

// NULL if unset or empty.
const char* environment_text(const Setting& setting) {
  const char* text = std::getenv(setting.name);
  return text && *text ? text : nullptr;
}

// The word of a "|" separated list at an index; empty past its end.
std::string choice_at(const char* choices, int64_t index) {
  const char* begin = choices;
  for (; index > 0; --index) {
    begin = std::strchr(begin, '|');
    if (!begin) return "";
    ++begin;
  }
  return std::string(begin, std::strcspn(begin, "|"));
}

bool parse_choice(const Setting& setting, const char* text, int64_t* value) {
  for (int64_t index = setting.min; index <= setting.max; ++index) {
    if (choice_at(setting.choices, index) == text) {
      *value = index;
      return true;
    }
  }
  return false;
}

bool parse_integer(const char* text, int64_t* value) {
  char* end = nullptr;
  errno = 0;
  *value = std::strtoll(text, &end, 10);
  return errno == 0 && end != text && *end == '\0';
}

// What a value must be, for an error.
std::string requirement(const Setting& setting) {
  const bool integer = setting.kind == Setting::Kind::kInteger;
  return setting_range(setting) + (integer ? ", or 0 for the default" : "");
}

bool in_range(const Setting& setting, int64_t value) {
  return value == 0 || (value >= setting.min && value <= setting.max);
}

Status parse(const Setting& setting, const char* text, int64_t* value) {
  const bool legal = setting.kind == Setting::Kind::kChoice
                         ? parse_choice(setting, text, value)
                         : parse_integer(text, value) && in_range(setting, *value);
  if (legal) return Status();
  return error(hepErrorInvalidArgument, "%s is \"%s\", but must be %s", setting.name, text,
               requirement(setting).c_str());
}

int32_t* field_of(const Setting& setting, hepConfig_t* config) {
  return reinterpret_cast<int32_t*>(reinterpret_cast<char*>(config) + setting.field);
}

}  // namespace

SettingsTable settings_table() { return {std::begin(kSettings), std::end(kSettings)}; }

std::string setting_range(const Setting& setting) {
  switch (setting.kind) {
    case Setting::Kind::kInteger:
      return std::to_string(setting.min) + " to " + std::to_string(setting.max);
    case Setting::Kind::kChoice: {
      std::string words = choice_at(setting.choices, setting.min);
      for (int64_t index = setting.min + 1; index <= setting.max; ++index)
        words += (index == setting.max ? " or " : ", ") + choice_at(setting.choices, index);
      return words;
    }
    case Setting::Kind::kText: break;
  }
  return "text";
}

std::string setting_default(const Setting& setting) {
  switch (setting.kind) {
    case Setting::Kind::kInteger:
      return setting.default_value ? std::to_string(setting.default_value) : "automatic";
    case Setting::Kind::kChoice: return choice_at(setting.choices, setting.default_value);
    case Setting::Kind::kText: break;
  }
  return "unset";
}

std::string setting_text(const char* name) {
  const Setting* setting = find_setting(name);
  if (!setting) {
    log_message(hepLogError, "internal error: the table of settings has no %s", name);
    return "";
  }
  const char* text = environment_text(*setting);
  return text ? text : "";
}

Status setting_number(const char* name, int64_t* value) {
  const Setting* setting = find_setting(name);
  if (!setting || setting->kind == Setting::Kind::kText)
    return error(hepErrorInternal, "the table of settings has no number %s", name);
  *value = setting->default_value;
  const char* text = environment_text(*setting);
  if (!text) return Status();
  int64_t given = 0;
  HEP_TRY(parse(*setting, text, &given));
  if (setting->kind == Setting::Kind::kChoice || given != 0) *value = given;
  return Status();
}

Status apply_environment(hepConfig_t* config) {
  for (const Setting& setting : kSettings) {
    const char* text = environment_text(setting);
    if (!text || setting.kind == Setting::Kind::kText) continue;
    int64_t value = 0;
    HEP_TRY(parse(setting, text, &value));
    if (setting.field_name) *field_of(setting, config) = static_cast<int32_t>(value);
  }
  return Status();
}

std::string setting_origin(const char* field_name) {
  for (const Setting& setting : kSettings)
    if (setting.field_name && std::strcmp(setting.field_name, field_name) == 0 &&
        environment_text(setting))
      return setting.name;
  return std::string("config field ") + field_name;
}

Status check_ranges(const hepConfig_t& config) {
  hepConfig_t copy = config;
  for (const Setting& setting : kSettings) {
    if (!setting.field_name) continue;
    const int32_t value = *field_of(setting, &copy);
    if (in_range(setting, value)) continue;
    if (setting.kind == Setting::Kind::kChoice)
      return error(hepErrorInvalidArgument, "config field %s is %d, but must be %d to %d (%s)",
                   setting.field_name, value, static_cast<int>(setting.min),
                   static_cast<int>(setting.max), setting_range(setting).c_str());
    return error(hepErrorInvalidArgument, "config field %s is %d, but must be %s",
                 setting.field_name, value, requirement(setting).c_str());
  }
  return Status();
}

}  // namespace hep
