// SPDX-License-Identifier: Apache-2.0
#include "bench.h"

#include <stdexcept>
#include <vector>

#include "bench_parts.h"
#include "gated.h"

namespace perf {

Bench::Bench(harness::World& world, const Job& job, int rank, Session& session, bool kernel_time,
             Report* report)
    : world_(world),
      job_(job),
      rank_(rank),
      session_(session),
      passes_{job.options.warmup, job.options.iterations, kernel_time, true},
      report_(report),
      checker_(job, rank, session) {}

void Bench::run() {
  for (const int sms : job_.options.sms) {
    for (const Tuning& tuning : tunings(job_.options.vary)) run_communicator(sms, tuning);
  }
  if (session_.nccl != nullptr && !job_.format().is_quantized()) {
    run_all_to_all();
    run_all_gather();
  }
  meet();  // freeing waits for the device, so no rank may wait for this one there
  harness::free_unused_memory(job_.backend);
}

void Bench::run_communicator(int sms, const Tuning& tuning) {
  const hepConfig_t config = job_.config(sms, tuning);
  // The same on all ranks. What the user asked to try may not fit this shape or budget.
  if (!tuning.is_default() && hepConfigCheck(&config, job_.num_ranks) != hepSuccess) {
    if (report_ != nullptr) report_->note("left out: " + tuning.text() + ": " + hepGetLastError());
    return;
  }
  Handles handles;
  handles.sm_budget = sms;
  handles.tuning = tuning;
  require(world_.create_comm(rank_, config, &handles.comm), "hepCommInit");
  hepRoutingConfig_t routing_config = HEP_ROUTING_CONFIG_INITIALIZER;
  routing_config.alignment = job_.options.alignment;
  require(hepRoutingCreate(&handles.routing, handles.comm, &routing_config), "hepRoutingCreate");
  require(hepCommLimits(handles.comm, &handles.limits), "hepCommLimits");

  const auto wanted = [&](Operation operation) {
    return job_.options.measures(operation) && tuning.concerns(operation) &&
           (operation == Operation::kDispatch || job_.format().can_combine());
  };
  run_routing(handles);  // what follows needs it
  for (const hepLayout_t layout : job_.options.layouts) {
    const auto for_memories = [&](void (Bench::*run)(const Handles&, hepLayout_t, Memory)) {
      for (const Memory memory : job_.options.memories) (this->*run)(handles, layout, memory);
    };
    if (wanted(Operation::kDispatch)) {
      for_memories(&Bench::run_dispatch);
    } else if (wanted(Operation::kCombine)) {
      carry_weights(handles, layout);
    }
    if (wanted(Operation::kCombine)) for_memories(&Bench::run_combine);
    if (wanted(Operation::kLayer) || wanted(Operation::kLayerGraph)) {
      for_memories(&Bench::run_layers);
    }
  }
  meet();  // nobody frees what another rank may still read
}

void Bench::run_case(hepComm_t comm, const Passes& passes, Case description, const Call& call,
                     const std::function<int64_t()>& check) {
  const auto progress = [&](const char* what) {
    if (report_ != nullptr) report_->progress(std::string(what) + " " + description.text());
  };
  progress("timing");
  description.timing = measure(world_, rank_, passes, session_.stream, call);
  if (comm != nullptr) {
    hepResult_t error = hepSuccess;
    require(hepCommGetAsyncError(comm, &error), "hepCommGetAsyncError");
    require(error, description.operation.c_str());
  }
  if (job_.options.check) {
    progress("checking");
    description.wrong = sum_over_ranks(world_, rank_, check());
  }
  if (report_ != nullptr) report_->add(description);
}

Case Bench::describe(const Handles& handles, Operation operation, int sms) const {
  Case description;
  description.operation = operation_name(operation);
  description.tuning = handles.tuning;
  description.sm_budget = handles.sm_budget;
  description.sms = sms;
  description.bytes_per_row = job_.row_bytes();
  return description;
}

Case Bench::describe(const Handles& handles, Operation operation, int sms, hepLayout_t layout,
                     Memory memory, const std::string& weights) const {
  Case description = describe(handles, operation, sms);
  description.layout = layout_name(layout);
  description.memory = memory_name(memory);
  description.weights = weights;
  return description;
}

void Bench::meet() { perf::meet(world_, rank_); }

void Bench::fill_tokens(void* x, int64_t rows) {
  session_.rows(job_.format().x_type())
      .fill(x, row_starts(Matrix::kTokens, rank_, rows), job_.shape.hidden);
}

}  // namespace perf
