// SPDX-License-Identifier: Apache-2.0
// The tuning fields of hepConfig_t, and the combinations of their values that are tried.
#pragma once

#include <hybridep.h>

#include <string>
#include <utility>
#include <vector>

namespace perf {

enum class Operation { kRouting, kDispatch, kCombine, kLayer, kLayerGraph };

struct TuningField {
  const char* name;
  int32_t hepConfig_t::*field;
  Operation operation;  // that it tunes
};

// A field, and the values to try.
struct Vary {
  const TuningField* field;
  std::vector<int> values;
};

// Reads FIELD=V1,V2,... False if that is no tuning field or no list of numbers.
bool parse_vary(const std::string& text, Vary* vary);

// One combination. Empty: the library's own choice.
class Tuning {
 public:
  bool is_default() const { return values_.empty(); }
  void set(const TuningField* field, int value) { values_.emplace_back(field, value); }
  void apply(hepConfig_t* config) const;
  bool concerns(Operation operation) const;
  std::string text() const;  // "default", or "dispatch_stages=8,dispatch_blocks=12"
  const std::vector<std::pair<const TuningField*, int>>& values() const { return values_; }

 private:
  std::vector<std::pair<const TuningField*, int>> values_;
};

// The library's own choice, and then the values of all fields crossed.
std::vector<Tuning> tunings(const std::vector<Vary>& vary);

}  // namespace perf
