// SPDX-License-Identifier: Apache-2.0
// Writes the results of hep_latency: for each case a line of a table and a JSON line, as soon as it
// ends.
#pragma once

#include <cstdint>
#include <string>

#include "bench/job.h"
#include "bench/results.h"
#include "latency.h"

namespace bench {

// A low-latency operation, or a half of one.
struct LatencyCase {
  std::string operation, launch;
  hepLayout_t layout;
  Memory memory;
  int blocks;  // 0: on the host
  Latency latency;
  int64_t wrong;  // -1: not checked
};

class LatencyReport {
 public:
  // Prints what the cases have in common, and the head of the table.
  LatencyReport(const Json& run, const std::string& json_path);

  void add(const Job& job, const LatencyCase& result);

  bool is_clean() const { return is_clean_; }  // no value was wrong

 private:
  ResultsFile file_;
  bool is_clean_ = true;
};

}  // namespace bench
