// SPDX-License-Identifier: Apache-2.0
// Operations of many shapes and formats for as long as one likes: several jobs in flight on a
// communicator, their operations mixed at random, eager or in graphs. The oracle judges each job
// once; every further run must give the same bytes.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "random_job.h"
#include "ranks/job.h"
#include "ranks/support.h"

namespace {

using harness::world;
using Clock = std::chrono::steady_clock;

constexpr int kJobsInFlight = 4;
constexpr int kGraphs = 3;
constexpr int kFewestSets = 4;

// Of the jobs of a set: so many that the oracle takes the smaller part of the time.
int repetitions() { return world().backend() == hepBackendCuda ? 1000 : 30; }

struct Tally {
  std::atomic<uint64_t> sets{0}, updates{0}, dispatches{0}, combines{0}, in_graphs{0};

  void add(const std::vector<Job>& jobs, uint64_t eager, uint64_t replayed) {
    ++sets;
    for (const Job& job : jobs) {
      updates += job.updates.size() * (eager + replayed);
      dispatches += job.dispatches.size() * (eager + replayed);
      combines += job.combines.size() * (eager + replayed);
      in_graphs += (job.updates.size() + job.dispatches.size() + job.combines.size()) * replayed;
    }
  }
};

// What random_job() makes, for one communicator.
struct Set {
  hepConfig_t config;
  std::vector<Job> jobs;
  bool has_graphs;
  uint64_t seed;
};

Set make_set(int number) {
  Set set{};
  set.seed = options().seed * 7919 + number;
  Random random(set.seed);
  const int num_ranks = world().num_ranks();
  const hepConfig_t config = random_config(random, num_ranks, number % 4 == 0);
  set.config = config;
  set.config.heap_bytes *= kJobsInFlight;
  set.has_graphs = world().backend() == hepBackendCuda && !world().shares_devices() && number % 2;
  for (int i = 0; i < kJobsInFlight; ++i) {
    Job job = random_job(random.next(), config, num_ranks, Size());
    job.name = "set " + std::to_string(number) + " of seed " + std::to_string(options().seed) +
               ", job " + std::to_string(i) + describe(job) + "\n";
    // Counts cannot be asked for during capture.
    for (Update& update : job.updates) update.query &= !set.has_graphs;
    set.jobs.push_back(std::move(job));
  }
  // The jobs share a communicator, and so its asynchronous errors.
  for (std::vector<char> Job::*flags : {&Job::overflowed, &Job::misrouted}) {
    std::vector<char> any(num_ranks, 0);
    for (const Job& job : set.jobs)
      for (int rank = 0; rank < num_ranks; ++rank) any[rank] |= (job.*flags)[rank];
    for (Job& job : set.jobs) job.*flags = any;
  }
  return set;
}

// The jobs of a set on one rank.
class SetRun {
 public:
  SetRun(const Set& set, Rank& rank)
      : set_(set), rank_(rank), wrong_(world().backend(), sizeof(uint64_t)) {
    for (const Job& job : set.jobs) runs_.push_back(std::make_unique<JobRun>(job, rank));
    wrong_.fill(0);
  }

  // The first run, which the oracle judges.
  bool judge() {
    for (const auto& run : runs_) run->keep_inputs();
    rank_.stream.synchronize();
    rank_.barrier();
    Random random(set_.seed);
    if (!issue_mixed(random)) return false;
    rank_.stream.synchronize();
    rank_.barrier();
    for (const auto& run : runs_) {
      run->verify();
      run->keep_outputs();
    }
    rank_.stream.synchronize();
    return !testing::Test::HasFailure();
  }

  bool capture() {
    bool issued = true;
    for (int i = 0; i < kGraphs && set_.has_graphs; ++i) {
      Random random(set_.seed + 1 + i);
      graphs_.push_back(std::make_unique<harness::Graph>());
      graphs_.back()->begin(rank_.stream);
      issued &= repeat(random);
      graphs_.back()->end(rank_.stream);
    }
    return issued;
  }

  // All ranks draw the same. Returns how many runs were replays, or -1 if a call was refused.
  int run_repetitions(int count) {
    Random random(set_.seed + 1000);
    int replays = 0;
    for (int i = 0; i < count; ++i) {
      const auto graph = static_cast<size_t>(random.between(0, kGraphs));
      if (graph < graphs_.size()) {
        graphs_[graph]->launch(rank_.stream);
        ++replays;
      } else if (!repeat(random)) {
        return -1;
      }
    }
    rank_.stream.synchronize();
    return replays;
  }

  void expect_right() {
    uint64_t wrong = 0;
    wrong_.download(&wrong, sizeof wrong);
    EXPECT_EQ(wrong, 0u) << "rank " << rank_.rank << ": " << set_.jobs[0].name;
    for (const auto& run : runs_) EXPECT_TRUE(run->intact()) << set_.jobs[0].name;
    const hepResult_t error = async_error(rank_);
    EXPECT_TRUE(error == hepSuccess || error == hepErrorOverflow ||
                error == hepErrorInvalidArgument)
        << hepGetLastError();
  }

 private:
  bool repeat(Random& random) {
    for (const auto& run : runs_) run->restore();
    if (!issue_mixed(random)) return false;
    for (const auto& run : runs_) run->count_wrong(wrong_.as<uint64_t>());
    return true;
  }

  // The calls of each job in their order, those of different jobs in any, but not between the
  // halves of an operation, whose lane another job may need.
  bool issue_mixed(Random& random) {
    std::vector<size_t> next(runs_.size(), 0);
    size_t left = 0;
    for (const Job& job : set_.jobs) left += job.order.size();
    while (left > 0) {
      const auto job = static_cast<size_t>(random.between(0, kJobsInFlight - 1));
      const std::vector<Call>& calls = set_.jobs[job].order;
      if (next[job] == calls.size()) continue;
      int open = 0;
      do {
        const Call& call = calls[next[job]++];
        if (!runs_[job]->issue(call)) return false;
        open += call.step == Step::kSend ? 1 : call.step == Step::kReceive ? -1 : 0;
        --left;
      } while (open > 0);
    }
    return true;
  }

  const Set& set_;
  Rank& rank_;
  harness::Buffer wrong_;
  std::vector<std::unique_ptr<JobRun>> runs_;
  std::vector<std::unique_ptr<harness::Graph>> graphs_;
};

void run_set(const Set& set, Tally* tally) {
  run_ranks(set.config, [&](Rank& self) {
    SetRun run(set, self);
    ASSERT_TRUE(run.judge() && run.capture());
    self.barrier();
    const int replays = run.run_repetitions(repetitions());
    ASSERT_GE(replays, 0);
    self.barrier();
    run.expect_right();
    if (self.rank == 0) tally->add(set.jobs, 1 + repetitions() - replays, replays);
  });
}

TEST(Soak, MixedOperationsGiveTheOraclesBytesForAsLongAsTheyRun) {
  const Clock::time_point end = Clock::now() + std::chrono::seconds(options().soak_seconds);
  Tally tally;
  for (int number = 0;; ++number) {
    const bool goes_on = number < kFewestSets || Clock::now() < end;
    if (world().max_over_processes(HasFailure()) != 0) break;
    if (world().max_over_processes(goes_on) == 0) break;
    run_set(make_set(number), &tally);
    world().run([](int) { harness::free_unused_memory(world().backend()); });
  }
  if (!world().is_root()) return;
  std::printf(
      "soak: %llu communicators; %llu updates, %llu dispatches and %llu combines a rank, %llu "
      "of them in graphs\n",
      static_cast<unsigned long long>(tally.sets), static_cast<unsigned long long>(tally.updates),
      static_cast<unsigned long long>(tally.dispatches),
      static_cast<unsigned long long>(tally.combines),
      static_cast<unsigned long long>(tally.in_graphs));
}

}  // namespace
