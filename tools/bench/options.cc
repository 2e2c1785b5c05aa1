// SPDX-License-Identifier: Apache-2.0
#include "options.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace bench {
namespace {

template <typename T>
bool contains(const std::vector<T>& list, T value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

int largest(const std::vector<int>& numbers) {
  return *std::max_element(numbers.begin(), numbers.end());
}

void check(const Options& options, int num_ranks) {
  if (largest(options.top_k) > options.experts) {
    throw std::runtime_error("--top-k " + std::to_string(largest(options.top_k)) +
                             " is more than --experts " + std::to_string(options.experts) +
                             ": a token selects distinct experts");
  }
  if (largest(options.idle_ranks) >= num_ranks) {
    throw std::runtime_error("--idle-ranks " + std::to_string(largest(options.idle_ranks)) +
                             " leaves none of " + std::to_string(num_ranks) + " ranks");
  }
  for (const hepQuantization_t quantization : options.quantizations) {
    if (quantization == hepQuantizeNone || contains(options.types, hepTypeFloat8E4M3)) continue;
    throw std::runtime_error("--quantize " + name_of(kQuantizationNames, quantization) +
                             " needs fp8-e4m3 in --type");
  }
}

// Rows of E4M3 come with forwarded scales or are quantised. Other types are only forwarded.
std::vector<Format> formats_of(hepDataType_t type, const Options& options) {
  std::vector<Format> all;
  const bool can_quantize = type == hepTypeFloat8E4M3;
  if (!can_quantize || contains(options.quantizations, hepQuantizeNone)) {
    const bool is_fp8 = can_quantize || type == hepTypeFloat8E5M2;
    const std::vector<Scales> usual = {is_fp8 ? Scales::kFloat32 : Scales::kNone};
    for (const Scales scales : options.scales.empty() ? usual : options.scales) {
      all.push_back({type, scales, hepQuantizeNone});
    }
  }
  for (const hepQuantization_t quantization : options.quantizations) {
    if (!can_quantize || quantization == hepQuantizeNone) continue;
    const Scales made = quantization == hepQuantizeUe8m0 ? Scales::kUe8m0 : Scales::kFloat32;
    all.push_back({type, made, quantization});
  }
  return all;
}

std::vector<Format> formats(const Options& options) {
  std::vector<Format> all;
  for (const hepDataType_t type : options.types) {
    for (const Format& format : formats_of(type, options)) all.push_back(format);
  }
  return all;
}

}  // namespace

const Names<hepLayout_t> kLayoutNames = {{"flat", hepLayoutFlat},
                                         {"expert-major", hepLayoutExpertMajor},
                                         {"expert-padded", hepLayoutExpertPadded}};
const Names<Memory> kMemoryNames = {{"heap", Memory::kHeap}, {"any", Memory::kAny}};
const Names<Distribution> kRoutingNames = {{"uniform", Distribution::kUniform},
                                           {"hot-rank", Distribution::kHotRank},
                                           {"hot-expert", Distribution::kHotExpert},
                                           {"zipf", Distribution::kZipf}};

void resolve(const Defaults& defaults, hepBackend_t backend, int num_ranks, Options* options) {
  const bool cuda = backend == hepBackendCuda;
  const auto fill = [](auto* list, const auto& values) {
    if (list->empty()) *list = values;
  };
  const std::vector<Memory> memories = {Memory::kHeap, Memory::kAny};
  fill(&options->tokens, defaults.tokens);
  fill(&options->sms, defaults.sms);
  fill(&options->layouts, defaults.layouts);
  fill(&options->hidden, std::vector<int>{cuda ? 7168 : 1024});
  fill(&options->top_k, std::vector<int>{cuda ? 8 : 4});
  fill(&options->memories, cuda ? memories : std::vector<Memory>{Memory::kAny});
  if (options->experts == 0) options->experts = num_ranks * (cuda ? 8 : 4);
  if (options->iterations == 0) options->iterations = defaults.iterations;
  if (options->warmup < 0) options->warmup = cuda ? 10 : 3;
  check(*options, num_ranks);
}

std::vector<Shape> shapes(const Options& options) {
  std::vector<Shape> all;
  for (const int hidden : options.hidden) {
    for (const int tokens : options.tokens) {
      for (const int top_k : options.top_k) {
        for (const Distribution routing : options.routings) {
          bool is_first = true;
          for (const Format& format : formats(options)) {
            for (const int idle_ranks : options.idle_ranks) {
              all.push_back({tokens, hidden, top_k, routing, format, is_first, idle_ranks});
            }
            is_first = false;
          }
        }
      }
    }
  }
  return all;
}

}  // namespace bench
