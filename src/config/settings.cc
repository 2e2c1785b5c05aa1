// SPDX-License-Identifier: Apache-2.0
#include "config/settings.h"

#include <array>
#include <cerrno>
#include <cinttypes>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/log.h"

namespace hep {
namespace {

constexpr const char* kMemoryKinds = "auto|descriptor|ipc|fabric";
constexpr const char* kHostIsas = "auto|plain|avx2|avx512";
constexpr const char* kLogLevels = "none|error|warning|info|debug";
constexpr int kDefaultRendezvousTimeoutMs = 600000;
constexpr int kDefaultPollUs = 50;

constexpr auto kInteger = Setting::Kind::kInteger;
constexpr auto kChoice = Setting::Kind::kChoice;
constexpr auto kText = Setting::Kind::kText;

// Settings that override no field.
constexpr Setting kOtherSettings[] = {
    {"HEP_HOST_ISA", nullptr, kChoice, 0, 3, 0, kHostIsas,
     "instructions of the host backend's arithmetic, for tests; auto takes the fastest"},
    {"HEP_LOG", nullptr, kChoice, 0, 4, hepLogWarning, kLogLevels,
     "most detailed level of messages that are delivered; read once in a process"},
    {"HEP_MEMORY", nullptr, kChoice, 0, 3, 0, kMemoryKinds,
     "how ranks map each other's device memory: file descriptors, cudaIpc or fabric handles; auto "
     "probes"},
    {"HEP_RENDEZVOUS_ADDRESS", nullptr, kText, 0, 0, 0, nullptr,
     "numeric address of this machine at which a rendezvous and processes that connect listen; "
     "unset: all"},
    {"HEP_RENDEZVOUS_TIMEOUT_MS", nullptr, kInteger, 1, kMaxTimeoutMs, kDefaultRendezvousTimeoutMs,
     nullptr, "how long a rendezvous that hepGetUniqueId opened waits for its ranks"},
    {"HEP_NETWORK", nullptr, kText, 0, 0, 0, nullptr,
     "libfabric's name of the provider between domains; unset or auto: the first usable one of "
     "efa, "
     "verbs;ofi_rxm, tcp, net and tcp;ofi_rxm. simulated: within one process, for tests"},
    {"HEP_NETWORK_INTERFACE", nullptr, kText, 0, 0, 0, nullptr,
     "NICs of the ranks of a domain, by number: mlx5_0+mlx5_1,mlx5_2+mlx5_3 gives two to each; "
     "unset: "
     "those nearest to the GPU"},
    {"HEP_NETWORK_NICS", nullptr, kInteger, 1, 4, 0, nullptr,
     "most NICs that a rank uses; automatic: its share of those nearest to its GPU"},
    {"HEP_NETWORK_POLL_US", nullptr, kInteger, 1, 1000000, kDefaultPollUs, nullptr,
     "longest sleep of the thread that serves the network, after a pause of all traffic"},
    {"HEP_NETWORK_LIBRARY", nullptr, kText, 0, 0, 0, nullptr,
     "file to open for the network; unset: libfabric.so.1"},
    {"HEP_NCCL_LIBRARY", nullptr, kText, 0, 0, 0, nullptr,
     "file to open where the process has not loaded NCCL itself; unset: libnccl.so.2"},
};

constexpr Setting setting_of(const Field& field) {
  return {field.variable,
          &field,
          field.choices != nullptr ? kChoice : kInteger,
          field.min,
          field.max,
          field.default_value,
          field.choices,
          field.documentation};
}

constexpr size_t count_variables() {
  size_t count = 0;
  for (const Field& field : kFields) count += field.variable != nullptr;
  return count;
}

constexpr size_t kNumSettings = count_variables() + std::size(kOtherSettings);

constexpr std::array<Setting, kNumSettings> make_settings() {
  std::array<Setting, kNumSettings> settings{};
  size_t count = 0;
  for (const Field& field : kFields)
    if (field.variable != nullptr) settings[count++] = setting_of(field);
  for (const Setting& setting : kOtherSettings) settings[count++] = setting;
  return settings;
}

constexpr std::array<Setting, kNumSettings> kSettings = make_settings();

const Setting* find_setting(const char* name) {
  for (const Setting& setting : kSettings)
    if (std::strcmp(setting.name, name) == 0) return &setting;
  return nullptr;
}

// Returns NULL if the variable is unset or empty.
const char* environment_text(const Setting& setting) {
  // secure_getenv: the caller of a program with raised rights must not choose which library it
  // opens, or where it listens.
  const char* text = ::secure_getenv(setting.name);
  return text && *text ? text : nullptr;
}

// Returns the word at an index of a list that "|" separates; empty past its end.
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

// Says what a value must be, for an error.
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

}  // namespace

SettingsTable settings_table() { return {kSettings.data(), kSettings.data() + kSettings.size()}; }

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

void apply_log_level() {
  int64_t level = hepLogWarning;
  if (const Status status = setting_number("HEP_LOG", &level); !status.ok())
    log_message(hepLogWarning, "%s", status.message().c_str());
  else
    set_log_level(static_cast<hepLogLevel_t>(level));
}

Status apply_environment(hepConfig_t* config) {
  Status first_error;
  for (const Setting& setting : kSettings) {
    const char* text = environment_text(setting);
    if (!text || setting.kind == Setting::Kind::kText) continue;
    int64_t value = 0;
    if (Status parsed = parse(setting, text, &value); !parsed.ok()) {
      if (first_error.ok()) first_error = std::move(parsed);
    } else if (setting.field) {
      set_field(*setting.field, value, config);
    }
  }
  return first_error;
}

std::string setting_origin(const char* field_name) {
  for (const Setting& setting : kSettings)
    if (setting.field && std::strcmp(setting.field->name, field_name) == 0 &&
        environment_text(setting))
      return setting.name;
  return std::string("config field ") + field_name;
}

Status check_ranges(const hepConfig_t& config) {
  for (const Field& field : kFields) {
    if (field.kind == Field::Kind::kPointer) continue;
    const int64_t value = value_of(field, config);
    const bool may_be_0 = field.kind == Field::Kind::kDefaulted;
    if ((may_be_0 && value == 0) || (value >= field.min && value <= field.max)) continue;
    const std::string words =
        field.choices ? " (" + setting_range(setting_of(field)) + ")" : std::string();
    return error(hepErrorInvalidArgument,
                 "config field %s is %" PRId64 ", but must be %" PRId64 " to %" PRId64 "%s%s",
                 field.name, value, field.min, field.max, words.c_str(),
                 may_be_0 ? ", or 0 for the default" : "");
  }
  return Status();
}

}  // namespace hep
