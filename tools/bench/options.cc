// SPDX-License-Identifier: Apache-2.0
#include "options.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "oracle/reference_numbers.h"

namespace bench {
namespace {

constexpr int kBlock = 128;  // elements that share a scale

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

// Rows of E4M3 have forwarded scales or are quantised. Rows of other types are only forwarded.
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

const Names<hepDataType_t> kTypeNames = {{"bf16", hepTypeBfloat16},
                                         {"fp16", hepTypeFloat16},
                                         {"fp32", hepTypeFloat32},
                                         {"fp8-e4m3", hepTypeFloat8E4M3},
                                         {"fp8-e5m2", hepTypeFloat8E5M2}};
const Names<Scales> kScalesNames = {
    {"none", Scales::kNone}, {"fp32", Scales::kFloat32}, {"ue8m0", Scales::kUe8m0}};
const Names<hepQuantization_t> kQuantizationNames = {
    {"none", hepQuantizeNone}, {"fp32", hepQuantizeFloat32}, {"ue8m0", hepQuantizeUe8m0}};

const Names<hepLayout_t> kLayoutNames = {{"flat", hepLayoutFlat},
                                         {"expert-major", hepLayoutExpertMajor},
                                         {"expert-padded", hepLayoutExpertPadded}};
const Names<Memory> kMemoryNames = {{"heap", Memory::kHeap}, {"any", Memory::kAny}};
const Names<Distribution> kRoutingNames = {{"uniform", Distribution::kUniform},
                                           {"hot-rank", Distribution::kHotRank},
                                           {"hot-expert", Distribution::kHotExpert},
                                           {"zipf", Distribution::kZipf}};

bool Format::can_combine() const {
  if (has_scales()) return false;
  return type == hepTypeBfloat16 || type == hepTypeFloat16 || type == hepTypeFloat32;
}

int64_t Format::x_bytes(int hidden) const {
  return int64_t{hidden} * reference::bytes_of(x_type());
}

int64_t Format::row_bytes(int hidden) const { return int64_t{hidden} * reference::bytes_of(type); }

int Format::scale_columns(int hidden) const {
  return has_scales() ? (hidden + kBlock - 1) / kBlock : 0;
}

std::string Format::text() const {
  std::string text = is_quantized() ? name_of(kTypeNames, x_type()) + ">" : "";
  text += name_of(kTypeNames, type);
  return has_scales() ? text + "+" + name_of(kScalesNames, scales) : text;
}

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
  if (options->domain_size == 0) options->domain_size = num_ranks;
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
