// SPDX-License-Identifier: Apache-2.0
// What is measured, from what was asked for.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "options.h"

namespace perf {
namespace {

template <typename T>
bool contains(const std::vector<T>& list, T value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

bool check_top_k(const Options& options, std::string* error) {
  const int most = *std::max_element(options.top_k.begin(), options.top_k.end());
  if (most <= options.experts) return true;
  *error = "--top-k " + std::to_string(most) + " is more than --experts " +
           std::to_string(options.experts) + ": a token selects distinct experts";
  return false;
}

bool check_formats(const Options& options, std::string* error) {
  for (const hepQuantization_t quantization : options.quantizations) {
    if (quantization == hepQuantizeNone || contains(options.types, hepTypeFloat8E4M3)) continue;
    *error =
        std::string("--quantize ") + quantization_name(quantization) + " needs fp8-e4m3 in --type";
    return false;
  }
  return true;
}

bool check_mode(const Options& options, int num_ranks, std::string* error) {
  const int most_idle = *std::max_element(options.idle_ranks.begin(), options.idle_ranks.end());
  if (!options.low_latency && most_idle > 0) *error = "--idle-ranks needs --low-latency";
  if (most_idle >= num_ranks) {
    *error = "--idle-ranks " + std::to_string(most_idle) + " leaves none of " +
             std::to_string(num_ranks) + " ranks";
  }
  if (options.low_latency && !options.vary.empty()) *error = "--low-latency goes without --vary";
  if (options.low_latency && options.baselines) *error = "--low-latency goes without --baselines";
  return error->empty();
}

std::vector<Format> formats(const Options& options) {
  std::vector<Format> all;
  for (const hepDataType_t type : options.types) {
    const bool can_quantize = type == hepTypeFloat8E4M3;
    if (!can_quantize || contains(options.quantizations, hepQuantizeNone)) {
      const bool is_fp8 = can_quantize || type == hepTypeFloat8E5M2;
      const Scales usual = is_fp8 ? Scales::kFloat32 : Scales::kNone;
      for (const Scales scales :
           options.scales.empty() ? std::vector<Scales>{usual} : options.scales) {
        all.push_back({type, scales, hepQuantizeNone});
      }
    }
    if (!can_quantize) continue;
    for (const hepQuantization_t quantization : options.quantizations) {
      if (quantization == hepQuantizeNone) continue;
      const Scales made = quantization == hepQuantizeUe8m0 ? Scales::kUe8m0 : Scales::kFloat32;
      all.push_back({type, made, quantization});
    }
  }
  return all;
}

}  // namespace

bool resolve_defaults(hepBackend_t backend, int num_ranks, Options* options, std::string* error) {
  const bool cuda = backend == hepBackendCuda;
  const auto fill = [](int* field, int value) {
    if (*field == 0) *field = value;
  };
  const auto fill_list = [](auto* list, std::decay_t<decltype(*list)> values) {
    if (list->empty()) *list = std::move(values);
  };
  using Numbers = std::vector<int>;
  if (options->low_latency) {
    fill_list(&options->tokens, cuda ? Numbers{1, 8, 16, 32, 64, 128, 256, 512} : Numbers{1, 64});
    fill_list(&options->sms, cuda ? Numbers{32} : Numbers{0});
    fill_list(&options->layouts, {hepLayoutFlat, hepLayoutExpertMajor, hepLayoutExpertPadded});
    if (cuda) fill(&options->iterations, 2000);
  }
  fill_list(&options->layouts, {hepLayoutFlat, hepLayoutExpertMajor});
  fill_list(&options->tokens, {cuda ? 4096 : 256});
  fill_list(&options->hidden, {cuda ? 7168 : 1024});
  fill_list(&options->top_k, {cuda ? 8 : 4});
  fill(&options->experts, num_ranks * (cuda ? 8 : 4));
  fill(&options->iterations, cuda ? 30 : 20);
  if (options->warmup < 0) options->warmup = cuda ? 10 : 3;
  fill_list(&options->sms, cuda ? Numbers{8, 16, 24} : Numbers{0});
  if (options->memories.empty()) {
    options->memories =
        cuda ? std::vector<Memory>{Memory::kHeap, Memory::kAny} : std::vector<Memory>{Memory::kAny};
  }
  if (options->operations.empty()) {
    options->operations = {Operation::kRouting, Operation::kDispatch, Operation::kCombine,
                           Operation::kLayer};
    if (cuda) options->operations.push_back(Operation::kLayerGraph);
  }
  if (!cuda && options->measures(Operation::kLayerGraph)) {
    *error = "--operations layer-graph needs the cuda backend";
    return false;
  }
  if (options->append && options->json.empty()) {
    *error = "--append needs --json";
    return false;
  }
  if (!check_mode(*options, num_ranks, error)) return false;
  return check_top_k(*options, error) && check_formats(*options, error);
}

bool Options::measures(Operation operation) const {
  return std::find(operations.begin(), operations.end(), operation) != operations.end();
}

std::vector<Shape> shapes(const Options& options) {
  std::vector<Shape> all;
  for (const int hidden : options.hidden) {
    for (const int tokens : options.tokens) {
      for (const int top_k : options.top_k) {
        for (const Distribution routing : options.routings) {
          bool first = true;
          for (const Format& format : formats(options)) {
            for (const int idle_ranks : options.idle_ranks) {
              all.push_back({tokens, hidden, top_k, routing, format, first, idle_ranks});
            }
            first = false;
          }
        }
      }
    }
  }
  return all;
}

}  // namespace perf
