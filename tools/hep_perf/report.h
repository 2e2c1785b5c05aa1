// SPDX-License-Identifier: Apache-2.0
// The results of a run: a table on standard output as it goes, and a JSON file at the end.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "ceilings.h"
#include "gpu.h"
#include "job.h"
#include "latency.h"
#include "measure.h"

namespace perf {

class JsonWriter;

// What was measured, and the result.
struct Case {
  std::string operation, layout = "-", memory = "-", weights = "-";  // "-" where it does not apply
  Tuning tuning;
  int sm_budget = 0;
  int sms = 0;                // that the operation occupies; 0: on the host, or not known
  bool moves_rows = true;     // has bandwidths
  int64_t bytes_per_row = 0;  // of a flat row that moves, and of its scales
  Timing timing;
  int64_t wrong = -1;  // -1: not checked

  std::string text() const;
};

// A case and its job.
struct Row : Case {
  Shape shape;
  double rows, remote_rows;  // flat rows that a rank receives, mean of the ranks

  bool same_case(const Row& other) const;  // but for the tuning
};

// A low-latency operation, or a half of one.
struct LatencyRow {
  std::string operation, launch, layout, memory;
  Shape shape;
  int blocks;  // 0: on the host
  Latency latency;
  int64_t wrong;  // -1: not checked
};

// Low-latency operations beside GEMMs: all of each alone, and both on two streams.
struct OverlapRow {
  std::string operation, layout, memory;
  Shape shape;
  int blocks;
  double gemm_us, operation_us, together_us;
  int64_t wrong;

  double exposed_us() const { return together_us - std::max(gemm_us, operation_us); }
};

// What does not change from case to case.
struct Setting {
  Options options;
  hepBackend_t backend = hepBackendHost;
  int num_ranks = 0, num_processes = 0;
  GpuInfo gpus;
  Ceilings ceilings;
  std::string kernel_time;      // why it is not measured, or empty
  std::string nccl;             // version, or why the baselines are not measured; empty: not asked
  double launch_us = 0;         // of an empty kernel, on the host; 0: not measured
  double launch_us_at_end = 0;  // the same after all cases, kernels having been traced
};

class Report {
 public:
  explicit Report(const Setting& setting) : setting_(setting) {}

  void print_header() const;
  void begin(const Job& job);  // the job of the cases to come
  void add(const Case& result);
  void add_latency(const LatencyRow& row);
  void add_overlap(const OverlapRow& row);
  void note(const std::string& text);
  void finish(double launch_us_at_end);  // prints what sums up

  // Shows on standard error what is being done, if somebody watches; an empty text clears it.
  void progress(const std::string& text) const;

  bool clean() const;        // no value was wrong, nothing failed
  std::string json() const;  // of this run

 private:
  void print_plan() const;

  // report_latency.cc
  void print_latency_header() const;
  void print_overlap() const;
  void write_latency(JsonWriter* json) const;

  double ceiling(const Row& row) const { return setting_.ceilings.best(row.sm_budget); }

  Setting setting_;
  Row next_{};  // the job's part of the rows to come
  std::vector<Row> rows_;
  std::vector<LatencyRow> latency_rows_;
  std::vector<OverlapRow> overlap_rows_;
  std::vector<std::string> notes_;
};

// GB/s of so many flat rows, and scales, a rank in the median time.
inline double bandwidth(double rows, const Row& row) {
  return rows * static_cast<double>(row.bytes_per_row) / row.timing.median_us * 1e-3;
}

}  // namespace perf
