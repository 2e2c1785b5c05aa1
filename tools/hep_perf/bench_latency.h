// SPDX-License-Identifier: Apache-2.0
// One rank's part of a job of low-latency operations: every case in turn.
#pragma once

#include "check.h"
#include "harness/world.h"
#include "job.h"
#include "latency.h"
#include "latency_lane.h"
#include "report.h"
#include "session.h"

namespace perf {

class LatencyBench {
 public:
  // `report` is given to rank 0 alone; the others pass NULL.
  LatencyBench(harness::World& world, const Job& job, int rank, Session& session, Report* report);

  // Runs all cases. Collective; throws std::runtime_error if a call fails on any rank.
  void run();

 private:
  // A communicator, and what its cases have in common.
  struct Place {
    hepComm_t comm;
    int blocks;
    hepLayout_t layout;
    Memory memory;
  };
  // A call for one batch, which puts its work on the stream.
  using Operation = std::function<void(int batch)>;
  using Check = std::function<int64_t()>;

  void run_communicator(int blocks);
  void run_place(const Place& place);
  void run_whole(const Place& place, const char* name, const Operation& operation,
                 const Check& check);
  void run_halves(const Place& place, const std::string& name, const Operation& send,
                  const Operation& receive, const Check& check);
  void capture(harness::Graph* graph, const std::vector<int>& batches, const Operation& operation);
  void report_case(const Place& place, const std::string& operation, const char* launch,
                   const Latency& latency, int64_t wrong);

  // bench_overlap.cc
  void run_overlap(const Place& place);

  std::vector<Latency> time(const Passes& passes, const std::vector<Operation>& parts,
                            int runs_ahead = kRunsAhead);
  int64_t count_wrong(const Place& place, const Check& check);

  harness::World& world_;
  const Job& job_;
  int rank_;
  Session& session_;
  Passes passes_;
  Report* report_;
  Checker checker_;
};

}  // namespace perf
