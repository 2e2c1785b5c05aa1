// SPDX-License-Identifier: Apache-2.0
#include "tuning.h"

#include <algorithm>
#include <sstream>

#include "parse.h"

namespace perf {
namespace {

constexpr TuningField kFields[] = {
    {"routing_threads", &hepConfig_t::routing_threads, Operation::kRouting},
    {"routing_blocks", &hepConfig_t::routing_blocks, Operation::kRouting},
    {"dispatch_stages", &hepConfig_t::dispatch_stages, Operation::kDispatch},
    {"dispatch_blocks", &hepConfig_t::dispatch_blocks, Operation::kDispatch},
    {"combine_load_stages", &hepConfig_t::combine_load_stages, Operation::kCombine},
    {"combine_store_stages", &hepConfig_t::combine_store_stages, Operation::kCombine},
    {"combine_blocks", &hepConfig_t::combine_blocks, Operation::kCombine},
};

}  // namespace

bool parse_vary(const std::string& text, Vary* vary) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos) return false;
  const std::string name = text.substr(0, equals);
  const auto* const field = std::find_if(std::begin(kFields), std::end(kFields),
                                         [&](const TuningField& f) { return name == f.name; });
  if (field == std::end(kFields)) return false;
  vary->field = field;
  return parse_list<int>(
      text.substr(equals + 1), &vary->values,
      [](const std::string& item, int* value) { return parse_int(item.c_str(), 0, value); });
}

void Tuning::apply(hepConfig_t* config) const {
  for (const auto& [field, value] : values_) config->*field->field = value;
}

bool Tuning::concerns(Operation operation) const {
  if (is_default()) return true;
  // A layer is all three.
  if (operation == Operation::kLayer || operation == Operation::kLayerGraph) return true;
  return std::any_of(values_.begin(), values_.end(),
                     [=](const auto& value) { return value.first->operation == operation; });
}

std::string Tuning::text() const {
  std::string text;
  for (const auto& [field, value] : values_) {
    text += (text.empty() ? "" : ",") + std::string(field->name) + "=" + std::to_string(value);
  }
  return text.empty() ? "default" : text;
}

std::vector<Tuning> tunings(const std::vector<Vary>& vary) {
  std::vector<Tuning> crossed = {Tuning()};
  for (const Vary& one : vary) {
    std::vector<Tuning> longer;
    for (const Tuning& tuning : crossed) {
      for (const int value : one.values) {
        longer.push_back(tuning);
        longer.back().set(one.field, value);
      }
    }
    crossed = longer;
  }
  if (!vary.empty()) crossed.insert(crossed.begin(), Tuning());
  return crossed;
}

}  // namespace perf
