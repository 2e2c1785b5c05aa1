// SPDX-License-Identifier: Apache-2.0
// One cell of the fault table, and what each rank does in it.
#pragma once

#include <hybridep.h>

#include <iosfwd>
#include <string>
#include <vector>

#include "crew.h"
#include "options.h"
#include "work.h"

namespace faults {

enum class Phase { kInit, kIdle, kRouting, kDispatch, kCombine, kGraph, kDestroy };

enum class Fault {
  kKill,   // the victim's process is killed
  kStop,   // it is stopped for longer than the timeout
  kAbort,  // the victim aborts
  kLate,   // it comes when the others have given up
  kOrder   // it calls another operation
};

// How far a rank has come, and what the test lets happen.
enum Point { kBorn = 1, kReady, kAtFault, kReported, kRenewed };
enum Gate { kFaultGate, kLastGate, kRenewGate };

// The last rank comes to the operation only after the fault, so that the victim and the others are
// in the middle of it when the fault happens.
struct Cell {
  Phase phase;
  Fault fault;

  bool victim_survives() const { return fault != Fault::kKill && fault != Fault::kStop; }
  bool ends_by_timeout() const;
  bool kills_rendezvous() const;  // which rank 0's process holds
  int timeout_ms() const;         // of what the fault ends
  Timeouts timeouts() const;
  hepResult_t expected() const;
  std::vector<int> survivors() const;
};

void PrintTo(const Cell& cell, std::ostream* out);  // for GoogleTest

// The part of one rank, in its process.
class RankScript {
 public:
  RankScript(const Cell& cell, int rank, Shared& shared);

  void run();

 private:
  bool is_victim() const { return rank_ == options().victim; }
  bool is_last() const { return rank_ == options().num_ranks - 1; }
  void come_to(Point point) { shared_.ranks[rank_].point.store(point); }
  void complain(const std::string& text);
  hepUniqueId_t id(int round, int maker);
  void keep(hepResult_t result, double since);

  void come_to_phase();
  void await_turn();
  void fail();
  hepResult_t run_until_failure(hepOperation_t operation);
  hepResult_t wait_for_error();
  hepResult_t async_error();
  void renew();

  const Cell cell_;
  const int rank_;
  Shared& shared_;
  Report& report_;
  Work work_;
};

}  // namespace faults
