// SPDX-License-Identifier: Apache-2.0
// Every fault in every phase: the survivors end in time, name the right rank, and go on together in
// another communicator. Prints what each of them saw as a table.
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <cstdio>
#include <iterator>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "rank_script.h"

namespace faults {
namespace {

constexpr const char* kPhaseNames[] = {"Init",    "Idle",  "Routing", "Dispatch",
                                       "Combine", "Graph", "Destroy"};
constexpr const char* kFaultNames[] = {"Kill", "Stop", "Abort", "Late", "Order"};
constexpr const char* kOperationNames[] = {"at rest", "routing", "dispatch", "combine"};
constexpr const char* kWaitNames[] = {"",        "blocks", "records",  "rows",    "weights",
                                      "readers", "slots",  "partials", "network", "landing"};

// For a fault that needs no timeout to be noticed, on a busy machine.
constexpr int kNoticedMs = 8000;

// In which ranks come to wait for each other.
constexpr std::chrono::milliseconds kSettle{50};

// By which the one that calls another operation is the first to give up. The others have heard in
// which operation it was by the time that they do.
constexpr std::chrono::milliseconds kHeadStart{250};

std::vector<std::string>& table() {
  static std::vector<std::string> lines;
  return lines;
}

// Of all cells the soonest, 0 if none ran: one that took longer on a busy machine says nothing.
double soonest_kill = 0, soonest_timeout = 0;

void keep_soonest(double milliseconds, double* soonest) {
  if (*soonest == 0 || milliseconds < *soonest) *soonest = milliseconds;
}

class PrintTable : public testing::Environment {
  void TearDown() override {
    EXPECT_LT(soonest_kill, 1000) << "ms until a lost process was noticed";
    // A rank that gave up waits for what the accused has to say, half of timeout_ms here at most.
    EXPECT_LT(soonest_timeout, 2) << "of timeout_ms until a wait expired";
    std::printf(
        "\n| phase | fault | rank | result | seen in | missing rank | ms |\n"
        "|---|---|---|---|---|---|---|\n");
    for (const std::string& line : table()) std::printf("%s\n", line.c_str());
  }
};
const testing::Environment* const print_table = testing::AddGlobalTestEnvironment(new PrintTable);

void add_to_table(const Cell& cell, int rank, const Report& report) {
  const hepFailure_t& failure = report.failure;
  char line[512];
  std::snprintf(
      line, sizeof line, "| %s | %s | %d%s | %s | %s %s | %s | %.0f |",
      kPhaseNames[static_cast<int>(cell.phase)], kFaultNames[static_cast<int>(cell.fault)], rank,
      rank == options().victim ? " (victim)" : "", hepGetErrorString(report.result),
      kOperationNames[failure.operation & 3], kWaitNames[failure.phase % std::size(kWaitNames)],
      failure.result == hepSuccess ? "-" : std::to_string(failure.missing_rank).c_str(),
      report.milliseconds);
  table().push_back(line);
}

class FaultTable : public testing::TestWithParam<Cell> {};

std::string name_of(const Cell& cell) {
  return std::string(kPhaseNames[static_cast<int>(cell.phase)]) +
         kFaultNames[static_cast<int>(cell.fault)];
}

// Those that there are: a communicator that is not made yet cannot be aborted, for example.
std::vector<Cell> all_cells() {
  std::vector<Cell> cells;
  for (const Phase phase : {Phase::kInit, Phase::kIdle, Phase::kRouting, Phase::kDispatch,
                            Phase::kCombine, Phase::kGraph, Phase::kDestroy})
    for (const Fault fault : {Fault::kKill, Fault::kStop, Fault::kAbort, Fault::kLate})
      if ((phase != Phase::kInit || fault != Fault::kAbort) &&
          (phase != Phase::kIdle || fault != Fault::kLate))
        cells.push_back({phase, fault});
  for (const Phase phase : {Phase::kRouting, Phase::kDispatch, Phase::kCombine})
    cells.push_back({phase, Fault::kOrder});
  return cells;
}

void bring_fault(const Cell& cell, Crew& crew) {
  const int last = options().num_ranks - 1;
  for (int rank = 0; rank < last; ++rank) ASSERT_TRUE(crew.reach(rank, kAtFault)) << rank;
  std::this_thread::sleep_for(cell.fault == Fault::kOrder ? kHeadStart : kSettle);
  crew.fault();
  switch (cell.fault) {
    case Fault::kKill: crew.signal(options().victim, SIGKILL); break;
    case Fault::kStop: crew.signal(options().victim, SIGSTOP); break;
    case Fault::kAbort:
    case Fault::kOrder: crew.open(kFaultGate); break;
    case Fault::kLate: break;
  }
  crew.open(kLastGate);
  for (const int rank : cell.survivors()) {
    if (rank == options().victim && cell.fault == Fault::kLate) continue;
    ASSERT_TRUE(crew.reach(rank, kReported)) << "rank " << rank;
  }
  if (cell.fault != Fault::kLate) return;
  crew.open(kFaultGate);
  ASSERT_TRUE(crew.reach(options().victim, kReported)) << "the one that is late";
}

std::string operation_of_victim(const Cell& cell) {
  const char* const name = cell.phase == Phase::kRouting    ? "dispatch"
                           : cell.phase == Phase::kDispatch ? "combine"
                                                            : "routing update";
  return "rank " + std::to_string(options().victim) + ": " + name;
}

void expect_report(const Cell& cell, int rank, const Report& report) {
  const std::string where = "rank " + std::to_string(rank) + ": " + report.sentence;
  EXPECT_STREQ(report.complaint, "") << where;
  const bool late = rank == options().victim && cell.fault == Fault::kLate;
  if (!late) {
    EXPECT_LT(report.milliseconds,
              (cell.ends_by_timeout() ? 2 * cell.timeout_ms() : 0) + kNoticedMs)
        << where;
  }
  const bool in_operation = cell.phase >= Phase::kRouting && cell.phase <= Phase::kGraph;
  if (in_operation && cell.fault == Fault::kKill) keep_soonest(report.milliseconds, &soonest_kill);
  if (in_operation && !late && (cell.fault == Fault::kStop || cell.fault == Fault::kLate)) {
    EXPECT_GT(report.milliseconds, 0.5 * cell.timeout_ms()) << where;
    keep_soonest(report.milliseconds / cell.timeout_ms(), &soonest_timeout);
  }
  // Who finds nobody there any more, and no rendezvous, knows no more than that.
  if ((late && cell.phase == Phase::kInit) || cell.kills_rendezvous()) {
    EXPECT_NE(report.result, hepSuccess) << where;
    return;
  }
  EXPECT_EQ(report.result, cell.expected()) << where;
  if (cell.phase == Phase::kDestroy) return;
  const std::string sentence = report.sentence;
  // The rank whose process holds the rendezvous may be known by that alone.
  if (cell.phase != Phase::kInit || options().victim != 0) {
    EXPECT_NE(sentence.find("rank " + std::to_string(options().victim)), std::string::npos)
        << where;
  }
  if (cell.phase == Phase::kInit) return;
  EXPECT_EQ(report.failure.result, cell.expected()) << where;
  EXPECT_EQ(report.failure.rank, rank) << where;
  EXPECT_EQ(report.failure.mode, hepModeThroughput) << where;
  EXPECT_EQ(report.failure.lane, 0) << where;
  if (cell.fault == Fault::kOrder) {
    // Ranks in different operations wait for each other, and each names the one it waits for. The
    // sentence tells in which operation that one is.
    if (rank != options().victim) {
      EXPECT_NE(sentence.find(operation_of_victim(cell)), std::string::npos) << where;
    }
    return;
  }
  // The victim itself may name the survivor that it waited for, and that had given up on it.
  if (rank != options().victim) {
    EXPECT_EQ(report.failure.missing_rank, options().victim) << where;
  }
}

TEST_P(FaultTable, SurvivorsEndInTimeNameTheRankAndGoOn) {
  const Cell cell = GetParam();
  if (cell.phase == Phase::kGraph && options().backend != hepBackendCuda)
    GTEST_SKIP() << "only the cuda backend has graphs";
  Crew crew(options().num_ranks, [&](int rank, Shared& shared) {
    take_gpu(options().backend, rank);
    RankScript(cell, rank, shared).run();
  });
  bring_fault(cell, crew);
  crew.open(kRenewGate);
  for (const int rank : cell.survivors()) {
    EXPECT_TRUE(crew.reach(rank, kRenewed)) << "rank " << rank << " in another communicator";
    EXPECT_TRUE(crew.ended(rank)) << "rank " << rank;
    const Report& report = crew.shared().ranks[rank].report;
    expect_report(cell, rank, report);
    add_to_table(cell, rank, report);
  }
}

INSTANTIATE_TEST_SUITE_P(Every, FaultTable, testing::ValuesIn(all_cells()),
                         [](const testing::TestParamInfo<Cell>& info) {
                           return name_of(info.param);
                         });

}  // namespace

void PrintTo(const Cell& cell, std::ostream* out) { *out << name_of(cell); }

}  // namespace faults
