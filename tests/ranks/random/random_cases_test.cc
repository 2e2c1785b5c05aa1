// SPDX-License-Identifier: Apache-2.0
// Whatever the shape, the types and the routing, every output byte is the one that the contract
// names. Random cases; the seed and the number of a case, which a failure prints, bring it back. A
// case that fails is made smaller as long as it still fails.
#include <gtest/gtest-spi.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include "random_job.h"
#include "ranks/job.h"
#include "ranks/support.h"

namespace {

using harness::world;

constexpr int kCasesPerComm = 4;

uint64_t seed_of(int number) {
  return (options().seed * 1000003 + number + (uint64_t{1} << 40)) << 8;
}

std::string describe(int number, const hepConfig_t& config) {
  std::ostringstream text;
  text << "--seed " << options().seed << " --case " << number << " (E=" << config.num_experts
       << " H=" << config.hidden << " max_tokens=" << config.max_tokens
       << " max_top_k=" << config.max_top_k << " type=" << config.type
       << " combine_type=" << config.combine_type << " partial_type=" << config.partial_type
       << " scale_bytes=" << config.scale_bytes << " lanes=" << config.lanes
       << " low_latency_tokens=" << config.low_latency_tokens << ")";
  return text.str();
}

// Runs jobs one after the other on a communicator.
void run_jobs(const hepConfig_t& config, const std::vector<Job>& jobs) {
  run_ranks(config, [&](Rank& rank) {
    for (const Job& job : jobs) {
      JobRun run(job, rank);
      rank.barrier();
      ASSERT_TRUE(run.issue()) << job.name;
      rank.stream.synchronize();
      rank.barrier();
      run.verify();
    }
  });
}

// Whether they fail in any process, without a word.
bool fails(const hepConfig_t& config, const std::vector<Job>& jobs) {
  testing::TestPartResultArray results;
  {
    testing::ScopedFakeTestPartResultReporter intercept(
        testing::ScopedFakeTestPartResultReporter::INTERCEPT_ALL_THREADS, &results);
    run_jobs(config, jobs);
  }
  bool failed = false;
  for (int i = 0; i < results.size(); ++i) failed |= results.GetTestPartResult(i).failed();
  return world().max_over_processes(failed) != 0;
}

// Asynchronous errors stay with the communicator.
void keep_async_errors(std::vector<Job>* jobs) {
  for (size_t i = 1; i < jobs->size(); ++i)
    for (int rank = 0; rank < world().num_ranks(); ++rank) {
      (*jobs)[i].misrouted[rank] |= (*jobs)[i - 1].misrouted[rank];
      (*jobs)[i].overflowed[rank] |= (*jobs)[i - 1].overflowed[rank];
    }
}

class Case {
 public:
  Case(int number, const hepConfig_t& config) : number_(number), config_(config) {}

  Job job() const {
    Job job = random_job(seed_of(number_), config_, world().num_ranks(), size_);
    job.name = describe(number_, config_);
    return job;
  }

  // Makes a failing case smaller, and reports what is left. False if it does not fail by itself.
  bool report() {
    if (!fails(config_, {job()})) return false;
    for (int step = 0; step < kMaxSteps; ++step) {
      Size size = size_;
      size.steps &= ~(uint64_t{1} << step);
      try_size(size);
    }
    Size size = size_;
    do size.max_tokens = std::min<int64_t>(size.max_tokens, config_.max_tokens) / 2;
    while (size.max_tokens > 0 && try_size(size));
    Job smallest = job();
    smallest.name += ", made smaller:" + ::describe(smallest) + "\n";
    run_jobs(config_, {smallest});
    EXPECT_TRUE(testing::Test::HasFailure()) << "it failed only sometimes";
    return true;
  }

 private:
  bool try_size(const Size& size) {
    const Size before = size_;
    size_ = size;
    const bool still = fails(config_, {job()});
    if (!still) size_ = before;
    return still;
  }

  const int number_;
  const hepConfig_t config_;
  Size size_;
};

// Reports the first case that fails alone; if none does, all of them together.
void report_failure(const hepConfig_t& config, const std::vector<int>& numbers,
                    const std::vector<Job>& jobs) {
  for (const int number : numbers)
    if (Case(number, config).report()) return;
  run_jobs(config, jobs);
  ADD_FAILURE() << "cases " << numbers.front() << " to " << numbers.back() << " of seed "
                << options().seed << " failed one after the other";
}

TEST(RandomCases, EveryOutputByteIsTheOracles) {
  const int only = options().only_case;
  const int num_cases = std::max(options().cases, only + 1);
  for (int first = 0; first < num_cases; first += kCasesPerComm) {
    const int last = std::min(first + kCasesPerComm, num_cases) - 1;
    if (only >= 0 && (only < first || only > last)) continue;

    Random of_group(options().seed * 1000003 + first);
    const bool plain = first / kCasesPerComm % 3 == 0;
    const hepConfig_t config = random_config(of_group, world().num_ranks(), plain);
    std::vector<int> numbers;
    std::vector<Job> jobs;
    for (int number = first; number <= last; ++number) {
      if (only >= 0 && number != only) continue;
      numbers.push_back(number);
      jobs.push_back(Case(number, config).job());
    }
    keep_async_errors(&jobs);
    if (!fails(config, jobs)) continue;
    report_failure(config, numbers, jobs);
    return;
  }
}

}  // namespace
