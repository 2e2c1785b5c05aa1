// SPDX-License-Identifier: Apache-2.0
// What hep_perf measures: the command line, and the defaults of each backend.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <string>
#include <vector>

namespace perf {

enum class Memory { kHeap, kAny };
enum class Distribution { kUniform, kHotRank, kHotExpert, kZipf };

// Zero and empty mean: the backend's default, until resolve_defaults has been called.
struct Options {
  int ranks = 0;
  hepBackend_t backend = hepBackendAuto;
  int tokens = 0;
  int hidden = 0;
  int top_k = 0;
  int experts = 0;
  std::vector<hepLayout_t> layouts = {hepLayoutFlat, hepLayoutExpertMajor};
  std::vector<int> sms;
  std::vector<Memory> memories;
  int iterations = 0;
  int warmup = -1;
  int alignment = 1;
  Distribution routing = Distribution::kUniform;
  uint64_t seed = 1;
  int timeout_ms = 0;
  std::string json;
  std::string commit;
  bool weights = true;
  bool check = true;
  bool ceilings = true;
  bool help = false;
};

// Reads the command line. On failure `*error` says which argument is wrong.
bool parse_options(int argc, char** argv, Options* options, std::string* error);

// Fills in what was not given. False, with `*error`, if the job makes no sense.
bool resolve_defaults(hepBackend_t backend, int num_ranks, Options* options, std::string* error);

std::string help_text();

const char* layout_name(hepLayout_t layout);
const char* memory_name(Memory memory);
const char* routing_name(Distribution routing);

}  // namespace perf
