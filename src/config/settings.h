// SPDX-License-Identifier: Apache-2.0
// The settings that a user can give in the environment: those of kFields, and those that override
// no field. No other code reads the environment.
#pragma once

#include <hybridep.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/status.h"
#include "config/fields.h"

namespace hep {

struct Setting {
  enum class Kind { kInteger, kChoice, kText };

  const char* name;    // of the environment variable
  const Field* field;  // that it overrides; NULL: none
  Kind kind;
  int64_t min, max;       // of an integer that is not 0; 0 stands for the default
  int64_t default_value;  // of an integer (0: chosen by the library), index of a choice
  const char* choices;    // "auto|cuda|host": their values are 0, 1, 2; NULL: not a choice
  const char* documentation;
};

struct SettingsTable {
  const Setting* first;
  const Setting* last;
  const Setting* begin() const { return first; }
  const Setting* end() const { return last; }
};
SettingsTable settings_table();

// Return the setting's range and its default in words, for documentation.
std::string setting_range(const Setting& setting);
std::string setting_default(const Setting& setting);

// Returns the variable's text; empty if it is unset. If the table lacks the variable, logs an
// error.
std::string setting_text(const char* name);

// Gives the checked value of an integer or choice; the default if the variable is unset, empty or
// 0. The error names the variable, its text and the legal values.
Status setting_number(const char* name, int64_t* value);

// Sets the level of the log to HEP_LOG. A wrong word becomes a warning and changes nothing.
void apply_log_level();

// Overrides the fields of a config by the variables that are set. A wrong number or word is an
// error, also of a variable without a field. It overrides nothing; the other variables still do.
Status apply_environment(hepConfig_t* config);

// Returns the origin of a field's value for errors: "config field lanes", or "HEP_LANES" if it is
// set.
std::string setting_origin(const char* field_name);

// Checks that every field of a config is in its range.
Status check_ranges(const hepConfig_t& config);

}  // namespace hep
