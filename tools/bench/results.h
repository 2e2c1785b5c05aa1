// SPDX-License-Identifier: Apache-2.0
// Writes results as JSON lines. A line is one case and says by itself what was measured, where and
// when.
#pragma once

#include <hybridep.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "harness/world.h"
#include "options.h"

namespace bench {

using Json = nlohmann::ordered_json;

// Returns the members that all cases of a run have in common: program, build and machine. An empty
// `commit` stands for the commit of the build.
Json describe_machine(const char* program, const std::string& commit, hepBackend_t backend);
// Returns the same with the ranks and with the options that do not change from case to case.
Json describe_run(const char* program, const harness::World& world, const Options& options);

Json describe_shape(const Shape& shape);

double rounded(double value);  // to three decimals

// Prints a line of a run's members, and one that warns if ranks share a GPU.
void print_run(const Json& run);

class ResultsFile {
 public:
  // Opens the file to append; an empty path means none. Throws std::runtime_error if it cannot.
  ResultsFile(const std::string& path, Json run);
  ~ResultsFile();
  ResultsFile(const ResultsFile&) = delete;
  ResultsFile& operator=(const ResultsFile&) = delete;

  // Writes the run's members, the date and those of `result` at once: an interrupted run keeps
  // what it has measured. Throws std::runtime_error if it cannot.
  void add(const Json& result);

 private:
  std::string path_;
  Json run_;
  std::FILE* file_ = nullptr;
};

}  // namespace bench
