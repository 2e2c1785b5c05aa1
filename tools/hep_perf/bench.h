// SPDX-License-Identifier: Apache-2.0
// One rank's part of a job: communicators, buffers, and every case in turn.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <functional>
#include <string>

#include "check.h"
#include "harness/world.h"
#include "job.h"
#include "measure.h"
#include "report.h"
#include "session.h"

namespace perf {

class Bench {
 public:
  // `report` is given to rank 0 alone; the others pass NULL.
  Bench(harness::World& world, const Job& job, int rank, Session& session, bool kernel_time,
        Report* report);

  // Runs all cases. Collective; throws std::runtime_error if a call fails on any rank.
  void run();

 private:
  struct Handles;  // a communicator and its routing
  struct Layer;    // the buffers of whole layers

  void run_communicator(int sms, const Tuning& tuning);

  // bench_operations.cc
  void run_routing(const Handles& handles);
  void run_dispatch(const Handles& handles, hepLayout_t layout, Memory memory);
  void carry_weights(const Handles& handles, hepLayout_t layout);
  void run_combine(const Handles& handles, hepLayout_t layout, Memory memory);

  // bench_layer.cc
  void run_layers(const Handles& handles, hepLayout_t layout, Memory memory);
  void run_layer(const Handles& handles, Layer& layer, Operation operation);

  // bench_baselines.cc
  void run_all_to_all();
  void run_all_gather();

  // Measures `call`, then counts what is wrong on all ranks, then reports. `comm` may be NULL.
  void run_case(hepComm_t comm, const Passes& passes, Case description, const Call& call,
                const std::function<int64_t()>& check);

  Case describe(const Handles& handles, Operation operation, int sms) const;
  Case describe(const Handles& handles, Operation operation, int sms, hepLayout_t layout,
                Memory memory, const std::string& weights) const;
  void meet();
  int last_call() const { return num_calls(passes_, job_.backend) - 1; }
  void fill_tokens(void* x, int64_t rows);  // with this rank's

  harness::World& world_;
  const Job& job_;
  int rank_;
  Session& session_;
  Passes passes_;
  Report* report_;
  Checker checker_;
};

}  // namespace perf
