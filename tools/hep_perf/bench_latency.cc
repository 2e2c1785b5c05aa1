// SPDX-License-Identifier: Apache-2.0
#include "bench_latency.h"

#include "gated.h"

namespace perf {
namespace {

// Operations of a graph that are timed together. The last is of batch 0, which is checked.
constexpr int kChainLength = 16;

}  // namespace

LatencyBench::LatencyBench(harness::World& world, const Job& job, int rank, Session& session,
                           Report* report)
    : world_(world),
      job_(job),
      rank_(rank),
      session_(session),
      passes_{job.options.warmup, job.options.iterations, false, false},
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
  require(world_.create_comm(rank_, job_.low_latency_config(blocks), &comm.handle), "hepCommInit");
  hepLimits_t limits = HEP_LIMITS_INITIALIZER;
  require(hepCommLimits(comm.handle, &limits), "hepCommLimits");
  for (const hepLayout_t layout : job_.options.layouts) {
    for (const Memory memory : job_.options.memories) {
      run_place({comm.handle, limits.low_latency_blocks, layout, memory});
    }
  }
  const bool overlaps =
      job_.backend == hepBackendCuda && job_.format().can_combine() && job_.shape.idle_ranks == 0;
  if (overlaps) {
    run_overlap({comm.handle, limits.low_latency_blocks, job_.options.layouts.front(),
                 job_.options.memories.front()});
  }
  meet(world_, rank_);  // nobody frees what another rank may still read
}

void LatencyBench::run_place(const Place& place) {
  const hepStream_t stream = session_.stream.get();
  LatencyLane lane(job_, place.comm, 0, place.layout, place.memory, rank_, session_);
  const auto check_dispatch = [&] { return lane.check_dispatch(checker_, stream); };
  const auto check_combine = [&] { return lane.check_combine(checker_); };
  run_whole(
      place, "dispatch", [&](int batch) { lane.dispatch(batch, stream); }, check_dispatch);
  run_halves(
      place, "dispatch", [&](int batch) { lane.dispatch_send(batch, stream); },
      [&](int) { lane.dispatch_receive(stream); }, check_dispatch);
  if (job_.format().can_combine()) {  // on the routing of the last dispatch, that of batch 0
    run_whole(
        place, "combine", [&](int batch) { lane.combine(batch, stream); }, check_combine);
    run_halves(
        place, "combine", [&](int batch) { lane.combine_send(batch, stream); },
        [&](int) { lane.combine_receive(stream); }, check_combine);
  }
  meet(world_, rank_);  // nobody frees what another rank may still read
}

std::vector<Latency> LatencyBench::time(const Passes& passes, const std::vector<Operation>& parts,
                                        int runs_ahead) {
  const int last = num_runs(passes) - 1;
  std::vector<Call> calls;
  for (const Operation& part : parts) {
    calls.push_back([&part, last](int index) { part((last - index) % 2); });
  }
  return measure_latency(world_, rank_, passes, session_.stream, calls, runs_ahead);
}

int64_t LatencyBench::count_wrong(const Place& place, const Check& check) {
  hepResult_t error = hepSuccess;
  require(hepCommGetAsyncError(place.comm, &error), "hepCommGetAsyncError");
  require(error, "a low-latency operation");
  return job_.options.check ? sum_over_ranks(world_, rank_, check()) : -1;
}

void LatencyBench::run_whole(const Place& place, const char* name, const Operation& operation,
                             const Check& check) {
  const Latency eager = time(passes_, {operation}).front();
  report_case(place, name, "eager", eager, count_wrong(place, check));
  if (job_.backend != hepBackendCuda) return;

  harness::Graph graphs[2], chain;
  meet(world_, rank_);  // making a graph may wait for the device, so no rank may wait for this one
  for (int batch = 0; batch < 2; ++batch) capture(&graphs[batch], {batch}, operation);
  std::vector<int> batches;
  for (int i = 0; i < kChainLength; ++i) batches.push_back((i + 1) % 2);
  capture(&chain, batches, operation);
  meet(world_, rank_);
  const Latency replayed =
      time(passes_, {[&](int batch) { graphs[batch].launch(session_.stream); }}).front();
  report_case(place, name, "graph", replayed, count_wrong(place, check));
  const Latency chained =
      time(passes_, {[&](int) { chain.launch(session_.stream); }}).front() / kChainLength;
  report_case(place, name, "chain", chained, count_wrong(place, check));
}

void LatencyBench::capture(harness::Graph* graph, const std::vector<int>& batches,
                           const Operation& operation) {
  graph->begin(session_.stream);
  for (const int batch : batches) operation(batch);
  graph->end(session_.stream);
}

void LatencyBench::run_halves(const Place& place, const std::string& name, const Operation& send,
                              const Operation& receive, const Check& check) {
  const std::vector<Latency> halves = time(passes_, {send, receive});
  const int64_t wrong = count_wrong(place, check);
  report_case(place, name + "-send", "eager", halves[0], wrong);
  report_case(place, name + "-receive", "eager", halves[1], wrong);
}

void LatencyBench::report_case(const Place& place, const std::string& operation, const char* launch,
                               const Latency& latency, int64_t wrong) {
  if (report_ == nullptr) return;
  report_->add_latency({operation, launch, layout_name(place.layout), memory_name(place.memory),
                        job_.shape, place.blocks, latency, wrong});
}

}  // namespace perf
