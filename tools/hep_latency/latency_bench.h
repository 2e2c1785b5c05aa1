// SPDX-License-Identifier: Apache-2.0
// One rank's part of a job of low-latency operations: every case in turn.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bench/check.h"
#include "harness/world.h"
#include "latency.h"
#include "latency_lane.h"
#include "report.h"

namespace bench {

class LatencyBench {
 public:
  // `report` is given to rank 0 alone; the others pass NULL.
  LatencyBench(harness::World& world, const Job& job, int rank, Session& session,
               LatencyReport* report);

  // Runs all cases. Collective; throws std::runtime_error if a call fails on any rank.
  void run();

 private:
  // A communicator, and the members that its cases have in common.
  struct Setup {
    hepComm_t comm;
    int blocks;
    hepLayout_t layout;
    Memory memory;
  };
  // A call for one batch, which puts its work on the stream.
  using Operation = std::function<void(int batch)>;
  using Check = std::function<int64_t()>;

  void run_communicator(int blocks);
  void run_setup(const Setup& setup);
  hepConfig_t config(int blocks) const;
  void run_whole(const Setup& setup, const char* name, const Operation& operation,
                 const Check& check);
  void run_halves(const Setup& setup, const std::string& name, const Operation& send,
                  const Operation& receive, const Check& check);
  void run_graphs(const Setup& setup, const char* name, const Operation& operation,
                  const Check& check);
  void capture(harness::Graph* graph, const std::vector<int>& batches, const Operation& operation);
  void report_case(const Setup& setup, const std::string& operation, const char* launch,
                   const Latency& latency, int64_t wrong);

  std::vector<Latency> time(const std::vector<Operation>& parts);
  int64_t count_wrong(const Setup& setup, const Check& check);

  harness::World& world_;
  const Job& job_;
  int rank_;
  Session& session_;
  Passes passes_;
  LatencyReport* report_;
  Checker checker_;
};

}  // namespace bench
