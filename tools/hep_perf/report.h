// SPDX-License-Identifier: Apache-2.0
// The results of a run: a table on standard output as it goes, and a JSON file at the end.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ceilings.h"
#include "gpu.h"
#include "job.h"
#include "measure.h"

namespace perf {

// One case.
struct Row {
  std::string operation, layout, memory, weights;  // "-" where it does not apply
  int sm_budget;
  int sms;  // that the operation occupies; 0 on the host
  Timing timing;
  bool moves_rows;  // has bandwidths
  int64_t wrong;    // -1: not checked
};

class Report {
 public:
  Report(const Job& job, int num_processes, const GpuInfo& gpus, const Ceilings& ceilings);

  void print_header() const;
  void add(const Row& row);

  // Shows on standard error what is being done, if somebody watches; an empty text clears it.
  void progress(const std::string& text) const;

  bool clean() const;  // no value was wrong, nothing failed
  std::string json() const;

 private:
  // GB/s of so many flat rows a rank in the median time.
  double bandwidth(double rows, const Row& row) const;

  const Job& job_;
  int num_processes_;
  GpuInfo gpus_;
  Ceilings ceilings_;
  double mean_rows_, mean_remote_rows_;
  std::vector<Row> rows_;
};

}  // namespace perf
