// SPDX-License-Identifier: Apache-2.0
// One rank's part of a run: communicators, buffers, and every case in turn.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "check.h"
#include "harness/memory.h"
#include "harness/world.h"
#include "job.h"
#include "report.h"

namespace perf {

class Bench {
 public:
  // `report` is given to rank 0 alone; the others pass NULL.
  Bench(harness::World& world, const Job& job, int rank, Report* report);

  // Runs all cases. Collective; throws std::runtime_error if a call fails on any rank.
  void run();

 private:
  struct Handles;  // a communicator and its routing
  class Input;     // x or y, filled, in one kind of memory

  void run_budget(int sms);
  void run_routing(const Handles& handles);
  void run_dispatch(const Handles& handles, hepLayout_t layout, Memory memory);
  void run_combine(const Handles& handles, hepLayout_t layout, Memory memory);

  // Measures `call`, then counts what is wrong on all ranks, then reports.
  void run_case(const Handles& handles, Row row, const std::function<void(int index)>& call,
                const std::function<int64_t()>& check);

  harness::World& world_;
  const Job& job_;
  int rank_;
  Report* report_;
  harness::Stream stream_;
  Checker checker_;
};

}  // namespace perf
