// SPDX-License-Identifier: Apache-2.0
// One rank's part of a job: communicators, buffers, and every case in turn.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <functional>
#include <string>

#include "bench/check.h"
#include "harness/world.h"
#include "measure.h"
#include "perf_options.h"
#include "report.h"

namespace bench {

class OperationBench {
 public:
  // `report` is given to rank 0 alone; the others pass NULL.
  OperationBench(harness::World& world, const PerfOptions& options, const Job& job, int rank,
                 Session& session, Report* report);

  // Runs all cases. Collective; throws std::runtime_error if a call fails on any rank.
  void run();

 private:
  // A communicator and its routing.
  struct Handles {
    Handles() = default;
    Handles(const Handles&) = delete;
    Handles& operator=(const Handles&) = delete;
    ~Handles() {
      hepRoutingDestroy(routing);
      hepCommDestroy(comm);
    }
    hepComm_t comm = nullptr;
    hepRouting_t routing = nullptr;
    int sm_budget = 0;
    hepLimits_t limits = HEP_LIMITS_INITIALIZER;
  };
  struct Layer;  // the buffers of whole layers

  void create(int sms, Handles* handles);
  void run_communicator(int sms);
  void run_layout(const Handles& handles, hepLayout_t layout);

  // operations.cc
  void run_routing(const Handles& handles);
  void run_dispatch(const Handles& handles, hepLayout_t layout, Memory memory);
  void carry_weights(const Handles& handles, hepLayout_t layout);
  void run_combine(const Handles& handles, hepLayout_t layout, Memory memory);

  // layer.cc
  void run_layers(const Handles& handles, hepLayout_t layout, Memory memory);
  void run_layer(const Handles& handles, Layer& layer, Operation operation);
  void enqueue(Layer& layer, int batch);

  // Measures `call`, then counts what is wrong on all ranks, then reports.
  void run_case(const Handles& handles, Case description, const Call& call,
                const std::function<int64_t()>& check);

  // Measures a memcpy of the rows that this rank receives, by all ranks at once.
  double time_memcpy(const Case& description);

  bool measures(Operation operation) const;
  Case describe(const Handles& handles, Operation operation, int sms) const;
  Case describe(const Handles& handles, Operation operation, int sms, hepLayout_t layout,
                Memory memory, const std::string& weights) const;
  std::string weights_name(hepLayout_t layout) const;
  void meet();
  int last_call() const { return num_calls(world_, passes_) - 1; }
  void fill_tokens(void* x, int64_t rows);  // with this rank's

  harness::World& world_;
  const PerfOptions& options_;
  const Job& job_;
  int rank_;
  Session& session_;
  Passes passes_;
  Report* report_;
  Checker checker_;
};

}  // namespace bench
