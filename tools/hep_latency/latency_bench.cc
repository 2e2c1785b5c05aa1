// SPDX-License-Identifier: Apache-2.0
#include "latency_bench.h"

#include <algorithm>

#include "bench/run.h"

namespace bench {
namespace {

// The operations of a graph that are timed together. The last one is of batch 0, which is checked.
constexpr int kChainLength = 16;

// The inputs of two batches.
int64_t heap_bytes(const Job& job) {
  int64_t rows = 0;
  for (const hepLayout_t layout : job.options.layouts) {
    const std::vector<int64_t> capacities = batch_capacities(job, layout);
    for (int rank = 0; rank < job.num_ranks; ++rank) {
      rows = std::max(rows, job.routing().at(rank).output_rows(layout, capacities[rank]));
    }
  }
  constexpr int64_t kSlack = int64_t{1} << 20;
  return 2 * (job.shape.tokens * job.x_bytes() + rows * job.row_bytes()) + kSlack;
}

}  // namespace

LatencyBench::LatencyBench(harness::World& world, const Job& job, int rank, Session& session,
                           LatencyReport* report)
    : world_(world),
      job_(job),
      rank_(rank),
      session_(session),
      passes_{job.options.warmup, job.options.iterations},
      report_(report),
      checker_(job, rank, session) {}

void LatencyBench::run() {
  for (const int blocks : job_.options.sms) run_communicator(blocks);
  meet(world_, rank_);  // freeing waits for the device, so no rank may wait for this one there
  harness::free_unused_memory(job_.backend);
}

void LatencyBench::run_communicator(int blocks) {
  struct Comm {
    ~Comm() { hepCommDestroy(handle); }
    hepComm_t handle = nullptr;
  } comm;
  require(world_.create_comm(rank_, config(blocks), &comm.handle), "hepCommInit");
  hepLimits_t limits = HEP_LIMITS_INITIALIZER;
  require(hepCommLimits(comm.handle, &limits), "hepCommLimits");
  for (const hepLayout_t layout : job_.options.layouts) {
    for (const Memory memory : job_.options.memories) {
      run_setup({comm.handle, limits.low_latency_blocks, layout, memory});
    }
  }
  meet(world_, rank_);  // nobody frees what another rank may still read
}

hepConfig_t LatencyBench::config(int blocks) const {
  hepConfig_t config = work_config(job_.options, job_.shape);
  config.backend = job_.backend;
  config.low_latency_tokens = job_.shape.tokens;
  config.low_latency_blocks = blocks;
  config.heap_bytes = heap_bytes(job_);
  return config;
}

void LatencyBench::run_setup(const Setup& setup) {
  const hepStream_t stream = session_.stream.get();
  LatencyLane lane(job_, setup.comm, 0, setup.layout, setup.memory, rank_, session_);
  const auto check_dispatch = [&] { return lane.check_dispatch(checker_, stream); };
  const auto check_combine = [&] { return lane.check_combine(checker_); };
  run_whole(
      setup, "dispatch", [&](int batch) { lane.dispatch(batch, stream); }, check_dispatch);
  run_halves(
      setup, "dispatch", [&](int batch) { lane.dispatch_send(batch, stream); },
      [&](int) { lane.dispatch_receive(stream); }, check_dispatch);
  if (job_.format().can_combine()) {  // on the routing of the last dispatch, that of batch 0
    run_whole(
        setup, "combine", [&](int batch) { lane.combine(batch, stream); }, check_combine);
    run_halves(
        setup, "combine", [&](int batch) { lane.combine_send(batch, stream); },
        [&](int) { lane.combine_receive(stream); }, check_combine);
  }
  meet(world_, rank_);  // nobody frees what another rank may still read
}

std::vector<Latency> LatencyBench::time(const std::vector<Operation>& parts) {
  const int last = num_runs(passes_) - 1;
  std::vector<Call> calls;
  for (const Operation& part : parts) {
    calls.push_back([&part, last](int index) { part((last - index) % 2); });
  }
  return measure_latency(world_, rank_, passes_, session_.stream, calls);
}

int64_t LatencyBench::count_wrong(const Setup& setup, const Check& check) {
  hepResult_t error = hepSuccess;
  require(hepCommGetAsyncError(setup.comm, &error), "hepCommGetAsyncError");
  require(error, "a low-latency operation");
  return job_.options.check ? sum_over_ranks(world_, rank_, check()) : -1;
}

void LatencyBench::run_whole(const Setup& setup, const char* name, const Operation& operation,
                             const Check& check) {
  const Latency eager = time({operation}).front();
  report_case(setup, name, "eager", eager, count_wrong(setup, check));
  // Graphs of several operations need a GPU for each rank.
  if (enqueues_ahead(world_)) run_graphs(setup, name, operation, check);
}

// Measures each operation as a graph of its own, and as one of many in a row in a graph.
void LatencyBench::run_graphs(const Setup& setup, const char* name, const Operation& operation,
                              const Check& check) {
  harness::Graph graphs[2], chain;
  meet(world_, rank_);  // making a graph may wait for the device, so no rank may wait for this one
  for (int batch = 0; batch < 2; ++batch) capture(&graphs[batch], {batch}, operation);
  std::vector<int> batches;
  for (int i = 0; i < kChainLength; ++i) batches.push_back((i + 1) % 2);
  capture(&chain, batches, operation);
  meet(world_, rank_);
  const Latency replayed =
      time({[&](int batch) { graphs[batch].launch(session_.stream); }}).front();
  report_case(setup, name, "graph", replayed, count_wrong(setup, check));
  const Latency chained =
      time({[&](int) { chain.launch(session_.stream); }}).front() / kChainLength;
  report_case(setup, name, "chain", chained, count_wrong(setup, check));
}

void LatencyBench::capture(harness::Graph* graph, const std::vector<int>& batches,
                           const Operation& operation) {
  graph->begin(session_.stream);
  for (const int batch : batches) operation(batch);
  graph->end(session_.stream);
}

void LatencyBench::run_halves(const Setup& setup, const std::string& name, const Operation& send,
                              const Operation& receive, const Check& check) {
  const std::vector<Latency> halves = time({send, receive});
  const int64_t wrong = count_wrong(setup, check);
  report_case(setup, name + "-send", "eager", halves[0], wrong);
  report_case(setup, name + "-receive", "eager", halves[1], wrong);
}

void LatencyBench::report_case(const Setup& setup, const std::string& operation, const char* launch,
                               const Latency& latency, int64_t wrong) {
  if (report_ == nullptr) return;
  report_->add(job_, {operation, launch, setup.layout, setup.memory, setup.blocks, latency, wrong});
}

}  // namespace bench
