// SPDX-License-Identifier: Apache-2.0
#include "operation_bench.h"

#include <algorithm>
#include <vector>

#include "bench/run.h"
#include "slots.h"

namespace bench {

OperationBench::OperationBench(harness::World& world, const PerfOptions& options, const Job& job,
                               int rank, Session& session, Report* report)
    : world_(world),
      options_(options),
      job_(job),
      rank_(rank),
      session_(session),
      passes_{options.warmup, options.iterations},
      report_(report),
      checker_(job, rank, session) {}

void OperationBench::run() {
  for (const int sms : options_.sms) run_communicator(sms);
  meet();  // freeing waits for the device, so no rank may wait for this one there
  harness::free_unused_memory(job_.backend);
}

void OperationBench::create(int sms, Handles* handles) {
  hepConfig_t config = work_config(options_, job_.shape);
  config.backend = job_.backend;
  config.sm_budget = sms;
  if (options_.exact_sms) config.dispatch_blocks = config.combine_blocks = sms;
  config.heap_bytes = heap_bytes(job_, options_);
  handles->sm_budget = sms;
  require(world_.create_comm(rank_, config, &handles->comm), "hepCommInit");
  hepRoutingConfig_t routing_config = HEP_ROUTING_CONFIG_INITIALIZER;
  routing_config.alignment = options_.alignment;
  require(hepRoutingCreate(&handles->routing, handles->comm, &routing_config), "hepRoutingCreate");
  require(hepCommLimits(handles->comm, &handles->limits), "hepCommLimits");
}

void OperationBench::run_communicator(int sms) {
  Handles handles;
  create(sms, &handles);
  run_routing(handles);  // what follows needs it
  for (const hepLayout_t layout : options_.layouts) run_layout(handles, layout);
  meet();  // nobody frees what another rank may still read
}

void OperationBench::run_layout(const Handles& handles, hepLayout_t layout) {
  using Run = void (OperationBench::*)(const Handles&, hepLayout_t, Memory);
  const auto for_memories = [&](Run run) {
    for (const Memory memory : options_.memories) (this->*run)(handles, layout, memory);
  };
  if (measures(Operation::kDispatch)) {
    for_memories(&OperationBench::run_dispatch);
  } else if (measures(Operation::kCombine)) {
    carry_weights(handles, layout);
  }
  if (measures(Operation::kCombine)) for_memories(&OperationBench::run_combine);
  if (measures(Operation::kLayer) || measures(Operation::kLayerGraph)) {
    for_memories(&OperationBench::run_layers);
  }
}

void OperationBench::run_case(const Handles& handles, Case description, const Call& call,
                              const std::function<int64_t()>& check) {
  const auto progress = [&](const char* what) {
    if (report_ != nullptr) show_progress(std::string(what) + " " + description.text());
  };
  progress("timing");
  description.timing = measure(world_, rank_, passes_, session_.stream, call);
  hepResult_t error = hepSuccess;
  require(hepCommGetAsyncError(handles.comm, &error), "hepCommGetAsyncError");
  require(error, name_of(kOperationNames, description.operation).c_str());
  if (job_.backend == hepBackendHost && options_.ceilings && description.moves_rows) {
    progress("copying as much as");
    description.memcpy_us = time_memcpy(description);
  }
  if (options_.check) {
    progress("checking");
    description.wrong = sum_over_ranks(world_, rank_, check());
  }
  if (report_ != nullptr) report_->add(job_, description);
}

double OperationBench::time_memcpy(const Case& description) {
  const int64_t rows = job_.routing().at(rank_).num_rows(hepLayoutFlat);
  const std::vector<char> from(rows * description.bytes_per_row, 1);
  std::vector<char> to(from.size());
  return measure(world_, rank_, passes_, session_.stream,
                 [&](int) { std::copy(from.begin(), from.end(), to.begin()); })
      .median_us;
}

// Rows with scales are dispatched alone.
bool OperationBench::measures(Operation operation) const {
  return options_.measures(operation) &&
         (operation == Operation::kDispatch || job_.format().can_combine());
}

Case OperationBench::describe(const Handles& handles, Operation operation, int sms) const {
  Case description;
  description.operation = operation;
  description.sm_budget = handles.sm_budget;
  description.sms = sms;
  description.bytes_per_row = job_.row_bytes();
  return description;
}

Case OperationBench::describe(const Handles& handles, Operation operation, int sms,
                              hepLayout_t layout, Memory memory, const std::string& weights) const {
  Case description = describe(handles, operation, sms);
  description.layout = name_of(kLayoutNames, layout);
  description.memory = name_of(kMemoryNames, memory);
  description.weights = weights;
  return description;
}

std::string OperationBench::weights_name(hepLayout_t layout) const {
  return job_.weight_mode(layout) == hepWeightsNone ? "none" : "dispatched";
}

void OperationBench::meet() { bench::meet(world_, rank_); }

void OperationBench::fill_tokens(void* x, int64_t rows) {
  session_.rows(job_.format().x_type())
      .fill(x, row_starts(Matrix::kTokens, rank_, rows), job_.shape.hidden);
}

}  // namespace bench
