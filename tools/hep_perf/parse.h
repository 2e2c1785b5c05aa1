// SPDX-License-Identifier: Apache-2.0
// Values on the command line: numbers, names and lists of them.
#pragma once

#include <cerrno>
#include <climits>
#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

namespace perf {

inline bool parse_number(const char* text, int64_t low, int64_t high, int64_t* value) {
  char* end = nullptr;
  errno = 0;
  const long long number = std::strtoll(text, &end, 10);
  if (errno != 0 || end == text || *end != '\0' || number < low || number > high) return false;
  *value = number;
  return true;
}

inline bool parse_int(const char* text, int low, int* value) {
  int64_t number;
  if (!parse_number(text, low, INT_MAX, &number)) return false;
  *value = static_cast<int>(number);
  return true;
}

// Items between commas, at least one; `parse(item, &value)` reads one.
template <typename T, typename Parse>
bool parse_list(const std::string& text, std::vector<T>* values, const Parse& parse) {
  std::istringstream stream(text);
  values->clear();
  for (std::string item; std::getline(stream, item, ',');) {
    T value;
    if (!parse(item, &value)) return false;
    values->push_back(value);
  }
  return !values->empty();
}

template <typename T>
struct Name {
  const char* name;
  T value;
};

template <typename T, size_t N>
bool find_value(const Name<T> (&names)[N], const std::string& name, T* value) {
  for (const Name<T>& candidate : names) {
    if (name != candidate.name) continue;
    *value = candidate.value;
    return true;
  }
  return false;
}

template <typename T, size_t N>
const char* find_name(const Name<T> (&names)[N], T value) {
  for (const Name<T>& candidate : names) {
    if (value == candidate.value) return candidate.name;
  }
  return "?";
}

}  // namespace perf
