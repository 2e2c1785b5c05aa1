// SPDX-License-Identifier: Apache-2.0
// Writes the results of hep_perf: for each case a line of a table and a JSON line, as soon as it
// ends.
#pragma once

#include <cstdint>
#include <string>

#include "bench/job.h"
#include "bench/results.h"
#include "link_ceilings/ceilings.h"
#include "measure.h"
#include "perf_options.h"

namespace bench {

// A case that was measured, with its result.
struct Case {
  Operation operation;
  std::string layout = "-", memory = "-", weights = "-";  // "-" where it does not apply
  int sm_budget = 0;
  int sms = 0;                // that the operation occupies; 0: on the host, or not known
  bool moves_rows = true;     // has bandwidths
  int64_t bytes_per_row = 0;  // of a flat row that moves, and of its scales
  Timing timing;
  double memcpy_us = 0;  // host: a memcpy of the rows that a rank receives; 0: not measured
  int64_t wrong = -1;    // -1: not checked

  std::string text() const;
};

class Report {
 public:
  // Prints what the cases have in common, and the head of the table. Keeps a reference to
  // `ceilings`.
  Report(const Json& run, const std::string& json_path, const Ceilings& ceilings);

  void add(const Job& job, const Case& result);

  bool is_clean() const { return is_clean_; }  // no value was wrong

 private:
  void print_ceilings() const;
  void print(const Job& job, const Case& result) const;
  void write(const Job& job, const Case& result);
  double ceiling(const Job& job, const Case& result) const;  // GB/s; 0: not measured

  const Ceilings& ceilings_;
  ResultsFile file_;
  bool is_clean_ = true;
};

}  // namespace bench
