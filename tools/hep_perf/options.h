// SPDX-License-Identifier: Apache-2.0
// What hep_perf measures: the command line, and the defaults of each backend.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <string>
#include <vector>

#include "format.h"
#include "tuning.h"

namespace perf {

enum class Memory { kHeap, kAny };
enum class Distribution { kUniform, kHotRank, kHotExpert, kZipf };

// One piece of work; the lists of the command line are crossed to these.
struct Shape {
  int tokens, hidden, top_k;
  Distribution routing;
  Format format;
  bool times_routing;  // which is the same for all formats, so only one of them does
  int idle_ranks;      // the last ones, which have no tokens

  int tokens_of(int rank, int num_ranks) const {
    return rank < num_ranks - idle_ranks ? tokens : 0;
  }
};

// Zero and empty mean: the backend's default, until resolve_defaults has been called.
struct Options {
  int ranks = 0;
  hepBackend_t backend = hepBackendAuto;
  std::vector<int> tokens, hidden, top_k;
  std::vector<Distribution> routings = {Distribution::kUniform};
  std::vector<hepDataType_t> types = {hepTypeBfloat16};
  std::vector<Scales> scales;
  std::vector<hepQuantization_t> quantizations = {hepQuantizeNone};
  int experts = 0;
  std::vector<Operation> operations;
  std::vector<hepLayout_t> layouts;
  std::vector<int> sms;
  std::vector<Memory> memories;
  std::vector<Vary> vary;
  int iterations = 0;
  int warmup = -1;
  int alignment = 1;
  uint64_t seed = 1;
  int timeout_ms = 0;
  std::string json;
  bool append = false;
  bool low_latency = false;
  std::vector<int> idle_ranks = {0};
  std::string commit;
  bool weights = true;
  bool baselines = false;
  bool check = true;
  bool ceilings = true;
  bool kernel_time = true;
  bool help = false;

  bool measures(Operation operation) const;
};

// Reads the command line. On failure `*error` says which argument is wrong.
bool parse_options(int argc, char** argv, Options* options, std::string* error);

// Fills in what was not given. False, with `*error`, if the job makes no sense.
bool resolve_defaults(hepBackend_t backend, int num_ranks, Options* options, std::string* error);

// Of resolved options.
std::vector<Shape> shapes(const Options& options);

std::string help_text();

const char* operation_name(Operation operation);
const char* layout_name(hepLayout_t layout);
const char* memory_name(Memory memory);
const char* routing_name(Distribution routing);

}  // namespace perf
