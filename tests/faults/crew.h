// SPDX-License-Identifier: Apache-2.0
// Ranks in processes of their own, which a test kills, stops and holds up. The process of the test
// itself uses neither the library nor CUDA, so that it can fork at any time.
#pragma once

#include <hybridep.h>
#include <sys/types.h>

#include <atomic>
#include <functional>
#include <string>
#include <vector>

namespace faults {

constexpr int kMaxCrew = 16;
constexpr int kGates = 4;
constexpr int kPatienceMs = 60000;  // of the test with its crew, and of the crew with the test

// What one rank tells the test.
struct Report {
  hepResult_t result = hepSuccess;
  hepFailure_t failure = HEP_FAILURE_INITIALIZER;
  char sentence[600] = "";
  double milliseconds = -1;  // from the fault to the end of the last call
  char complaint[400] = "";  // what was not as it must be; empty: nothing
};

double now_ms();

// Memory that the test and all ranks share.
struct Shared {
  std::atomic<int> gates[kGates];  // opened by the test
  std::atomic<double> fault_time;
  struct Rank {
    std::atomic<int> point;  // how far the rank has come
    Report report;
  } ranks[kMaxCrew];
  std::atomic<int> id_ready[3];
  hepUniqueId_t ids[3];
};

class Crew {
 public:
  // Starts the ranks; each runs body(rank, shared) and ends. What it throws becomes its complaint.
  Crew(int num_ranks, const std::function<void(int, Shared&)>& body);

  // Kills those that are still there.
  ~Crew();
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  Shared& shared() { return *shared_; }

  bool reach(int rank, int point);  // waits until the rank has; false: it did not in time
  void open(int gate) { shared_->gates[gate].store(1); }
  void signal(int rank, int number);  // for example SIGKILL
  void fault() { shared_->fault_time.store(now_ms()); }
  bool ended(int rank);  // waits until the process is gone, by itself and in good order

 private:
  Shared* shared_;
  std::vector<pid_t> processes_;
};

// In a rank: waits until the test opens the gate, or another rank has come to a point.
void await_gate(const Shared& shared, int gate);
void await_point(const Shared& shared, int rank, int point);

}  // namespace faults
