// SPDX-License-Identifier: Apache-2.0
// The work that a benchmark measures: what was asked for, and the defaults.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <string>
#include <vector>

#include "format.h"

namespace bench {

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

// Fills in what was not given. Throws std::runtime_error if the options contradict each other.
void resolve(const Defaults& defaults, hepBackend_t backend, int num_ranks, Options* options);

// Of resolved options.
std::vector<Shape> shapes(const Options& options);

}  // namespace bench
