// SPDX-License-Identifier: Apache-2.0
// Operations beside a GEMM: alone, and two batches in turn.
#include <algorithm>

#include "bench_latency.h"
#include "gated.h"
#include "overlap.h"

namespace perf {
namespace {

constexpr int kFewer = 10;                // times: medians need no thousands of runs
constexpr int kDoubleBatchRunsAhead = 8;  // of many pieces of work each
// Of which one is reported, so that idle streams at both ends count less.
constexpr int kLayers = 4;

// Operations go to a stream of their own, GEMMs to the one that is timed.
class TwoStreams {
 public:
  TwoStreams(harness::Stream& timed, int free_sms)
      : timed_(timed.get()), beside_(timed.backend()), gemm_(free_sms) {
    gemm();  // the first launch loads it, which may wait for other work
    timed.synchronize();
  }

  hepStream_t beside() const { return beside_.get(); }
  void gemm() { gemm_.launch(timed_); }
  void fork() { order(timed_, beside(), &fork_); }
  void join() { order(beside(), timed_, &join_); }

  // A lane's dispatch, and its GEMM after it; `batch` 0 or 1.
  void start(LatencyLane& lane, int number, int batch) {
    lane.dispatch(batch, beside());
    order(beside(), timed_, &dispatched_);
    gemm();
    multiplied_[number].record(timed_);
  }
  // Its combine after the GEMM.
  void finish(LatencyLane& lane, int number, int batch) {
    multiplied_[number].wait(beside());
    lane.combine(batch, beside());
  }

 private:
  static void order(hepStream_t before, hepStream_t after, Marker* marker) {
    marker->record(before);
    marker->wait(after);
  }

  hepStream_t timed_;
  harness::Stream beside_;
  Gemm gemm_;
  Marker fork_, join_, dispatched_, multiplied_[2];
};

}  // namespace

void LatencyBench::run_overlap(const Place& place) {
  LatencyLane first(job_, place.comm, 0, place.layout, place.memory, rank_, session_);
  LatencyLane second(job_, place.comm, 1, place.layout, place.memory, rank_, session_);
  LatencyLane* const lanes[] = {&first, &second};
  TwoStreams streams(session_.stream, place.blocks);
  const hepStream_t beside = streams.beside();

  Passes passes = passes_;
  passes.iterations = std::max(1, passes_.iterations / kFewer);
  const auto median_us = [&](const Operation& part, int runs_ahead = kRunsAhead) {
    return time(passes, {part}, runs_ahead).front().p50_us;
  };
  // Between fork and join, with and without a GEMM.
  const auto forked = [&](const Operation& operation, bool with_gemm) {
    return median_us([&](int batch) {
      streams.fork();
      operation(batch);
      if (with_gemm) streams.gemm();
      streams.join();
    });
  };
  const auto report = [&](const char* operation, double gemm_us, double operation_us,
                          double together_us, int64_t wrong) {
    if (report_ == nullptr) return;
    report_->add_overlap({operation, layout_name(place.layout), memory_name(place.memory),
                          job_.shape, place.blocks, gemm_us, operation_us, together_us, wrong});
  };

  const double gemm_us = median_us([&](int) { streams.gemm(); });
  const Operation dispatch = [&](int batch) { first.dispatch(batch, beside); };
  const Operation combine = [&](int batch) { first.combine(batch, beside); };
  const auto check_dispatch = [&] { return first.check_dispatch(checker_, session_.stream.get()); };
  const auto check_combine = [&] { return first.check_combine(checker_); };
  const double dispatch_us = forked(dispatch, false);
  const double with_dispatch_us = forked(dispatch, true);
  report("dispatch", gemm_us, dispatch_us, with_dispatch_us, count_wrong(place, check_dispatch));
  const double combine_us = forked(combine, false);
  const double with_combine_us = forked(combine, true);
  report("combine", gemm_us, combine_us, with_combine_us, count_wrong(place, check_combine));

  const double total_us = median_us(
      [&](int batch) {
        streams.fork();
        for (int number = 0; number < 2; ++number) streams.start(*lanes[number], number, batch);
        for (int layer = 1; layer < kLayers; ++layer) {
          for (int number = 0; number < 2; ++number) {
            streams.finish(*lanes[number], number, batch);
            streams.start(*lanes[number], number, batch);
          }
        }
        for (int number = 0; number < 2; ++number) streams.finish(*lanes[number], number, batch);
        streams.join();
      },
      kDoubleBatchRunsAhead);
  const auto check_both = [&] {
    int64_t wrong = 0;
    for (const LatencyLane* lane : lanes) {
      wrong +=
          lane->check_dispatch(checker_, session_.stream.get()) + lane->check_combine(checker_);
    }
    return wrong;
  };
  report("double-batch", 2 * gemm_us, 2 * (dispatch_us + combine_us), total_us / kLayers,
         count_wrong(place, check_both));
  meet(world_, rank_);  // nobody frees what another rank may still read
}

}  // namespace perf
