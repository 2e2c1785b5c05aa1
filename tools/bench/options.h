// SPDX-License-Identifier: Apache-2.0
// The work that a benchmark measures: the options that were given, and the defaults.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace bench {

// The words of the command line and of the results for the values of a type.
template <typename T>
using Names = std::vector<std::pair<std::string, T>>;

template <typename T>
std::string name_of(const Names<T>& names, T value) {
  for (const auto& [name, candidate] : names) {
    if (candidate == value) return name;
  }
  return "?";
}

// The scales of a row: one for each block of 128 elements.
enum class Scales { kNone, kFloat32, kUe8m0 };

extern const Names<hepDataType_t> kTypeNames;
extern const Names<Scales> kScalesNames;
extern const Names<hepQuantization_t> kQuantizationNames;

struct Format {
  hepDataType_t type = hepTypeBfloat16;          // of rows as they arrive
  Scales scales = Scales::kNone;                 // that arrive beside them
  hepQuantization_t quantize = hepQuantizeNone;  // otherwise x is BF16, and has no scales

  bool is_quantized() const { return quantize != hepQuantizeNone; }
  bool has_scales() const { return scales != Scales::kNone; }
  hepDataType_t x_type() const { return is_quantized() ? hepTypeBfloat16 : type; }
  bool can_combine() const;  // rows that dispatch brings, with nothing beside them

  int64_t x_bytes(int hidden) const;  // of a row
  int64_t row_bytes(int hidden) const;
  int scale_columns(int hidden) const;
  int scale_element_bytes() const { return scales == Scales::kFloat32 ? 4 : 1; }
  int64_t scale_bytes(int hidden) const {  // beside a row
    return int64_t{scale_columns(hidden)} * scale_element_bytes();
  }

  // "bf16", "fp8-e4m3+fp32", or "bf16>fp8-e4m3+ue8m0" where x is quantised.
  std::string text() const;
};

enum class Memory { kHeap, kAny };
enum class Distribution { kUniform, kHotRank, kHotExpert, kZipf };

extern const Names<hepLayout_t> kLayoutNames;
extern const Names<Memory> kMemoryNames;
extern const Names<Distribution> kRoutingNames;

// One piece of work. The lists of the command line are crossed to these.
struct Shape {
  int tokens, hidden, top_k;
  Distribution routing;
  Format format;
  bool is_first_format;  // the routing is the same for all formats: only the first times it
  int idle_ranks;        // the last ones, which have no tokens

  int tokens_of(int rank, int num_ranks) const {
    return rank < num_ranks - idle_ranks ? tokens : 0;
  }
};

// Zero and empty stand for the default of the backend, until resolve() has been called.
struct Options {
  int ranks = 0;
  int domain_size = 0;
  hepBackend_t backend = hepBackendAuto;
  std::vector<int> tokens, hidden, top_k;
  std::vector<Distribution> routings = {Distribution::kUniform};
  std::vector<hepDataType_t> types = {hepTypeBfloat16};
  std::vector<Scales> scales;
  std::vector<hepQuantization_t> quantizations = {hepQuantizeNone};
  int experts = 0;
  std::vector<hepLayout_t> layouts;
  std::vector<int> sms;
  std::vector<Memory> memories;
  int iterations = 0;
  int warmup = -1;
  int alignment = 1;
  uint64_t seed = 1;
  int timeout_ms = 0;
  std::vector<int> idle_ranks = {0};
  bool weights = true;
  bool check = true;
  std::string json, commit;
};

// The defaults of one benchmark on one backend.
struct Defaults {
  std::vector<int> tokens, sms;
  std::vector<hepLayout_t> layouts;
  int iterations;
};

// Fills in the options that were not given. Throws std::runtime_error if options contradict each
// other.
void resolve(const Defaults& defaults, hepBackend_t backend, int num_ranks, Options* options);

// Returns the shapes of resolved options.
std::vector<Shape> shapes(const Options& options);

}  // namespace bench
