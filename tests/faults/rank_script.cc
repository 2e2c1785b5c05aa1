// SPDX-License-Identifier: Apache-2.0
#include "rank_script.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <thread>

namespace faults {
namespace {

// What expires where a timeout ends the cell, and what must not where the end comes before it.
constexpr int kShortTimeoutMs = 500;
constexpr int kLongTimeoutMs = 40000;

hepOperation_t operation_of(Phase phase) {
  return phase == Phase::kDispatch  ? hepOperationDispatch
         : phase == Phase::kCombine ? hepOperationCombine
                                    : hepOperationRouting;
}

hepOperation_t following(hepOperation_t operation) {
  return operation == hepOperationCombine ? hepOperationRouting
                                          : static_cast<hepOperation_t>(operation + 1);
}

void require(hepResult_t result) {
  if (result != hepSuccess) throw std::runtime_error(hepGetLastError());
}

}  // namespace

bool Cell::kills_rendezvous() const {
  return phase == Phase::kInit && fault == Fault::kKill && options().victim == 0;
}

// Who comes when the rendezvous is gone cannot tell whether it will come back.
bool Cell::ends_by_timeout() const {
  return (fault != Fault::kKill && fault != Fault::kAbort) || kills_rendezvous();
}

int Cell::timeout_ms() const { return ends_by_timeout() ? kShortTimeoutMs : kLongTimeoutMs; }

Timeouts Cell::timeouts() const {
  return phase == Phase::kInit ? Timeouts{timeout_ms(), kLongTimeoutMs}
                               : Timeouts{kLongTimeoutMs, timeout_ms()};
}

hepResult_t Cell::expected() const {
  if (phase == Phase::kDestroy) return hepSuccess;
  if (ends_by_timeout()) return hepErrorTimeout;
  return fault == Fault::kKill ? hepErrorPeerLost : hepErrorAborted;
}

std::vector<int> Cell::survivors() const {
  std::vector<int> ranks;
  for (int rank = 0; rank < options().num_ranks; ++rank)
    if (rank != options().victim || victim_survives()) ranks.push_back(rank);
  return ranks;
}

RankScript::RankScript(const Cell& cell, int rank, Shared& shared)
    : cell_(cell),
      rank_(rank),
      shared_(shared),
      report_(shared.ranks[rank].report),
      work_(options().backend, rank, options().num_ranks) {}

void RankScript::run() {
  const hepUniqueId_t first = id(0, 0);
  come_to(kBorn);
  for (int rank = 0; rank < options().num_ranks; ++rank) await_point(shared_, rank, kBorn);
  if (cell_.phase == Phase::kInit) {
    await_turn();
    const hepResult_t result = work_.start(first, cell_.timeouts());
    keep(result, shared_.fault_time.load());
  } else {
    require(work_.start(first, cell_.timeouts()));
    come_to_phase();
    come_to(kReady);
    for (int rank = 0; rank < options().num_ranks; ++rank) await_point(shared_, rank, kReady);
    await_turn();
    fail();
  }
  come_to(kReported);
  await_gate(shared_, kRenewGate);
  if (work_.comm() != nullptr && work_.end() != hepSuccess) complain(hepGetLastError());
  renew();
  come_to(kRenewed);
}

void RankScript::complain(const std::string& text) {
  std::snprintf(report_.complaint, sizeof report_.complaint, "%s", text.c_str());
}

hepUniqueId_t RankScript::id(int round, int maker) {
  if (rank_ == maker) {
    require(hepGetUniqueId(&shared_.ids[round]));
    shared_.id_ready[round].store(1);
  }
  while (shared_.id_ready[round].load() == 0)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return shared_.ids[round];
}

void RankScript::keep(hepResult_t result, double since) {
  report_.milliseconds = now_ms() - since;
  report_.result = result;
  std::snprintf(report_.sentence, sizeof report_.sentence, "%s", hepGetLastError());
  if (work_.comm() != nullptr) hepCommGetFailure(work_.comm(), &report_.failure);
}

// The operations before the one in which the fault comes.
void RankScript::come_to_phase() {
  const std::string wrong = work_.check_round();
  if (!wrong.empty()) complain(wrong);
  if (cell_.phase == Phase::kGraph) work_.capture();
  if (cell_.phase == Phase::kDispatch || cell_.phase == Phase::kCombine)
    require(work_.issue(hepOperationRouting));
  if (cell_.phase == Phase::kCombine) require(work_.issue(hepOperationDispatch));
  work_.synchronize();
}

void RankScript::await_turn() {
  const bool waits_for_fault =
      is_victim() ? cell_.fault == Fault::kLate : cell_.fault == Fault::kOrder;
  if (is_last() && !is_victim()) await_gate(shared_, kLastGate);
  come_to(kAtFault);
  if (waits_for_fault) await_gate(shared_, kFaultGate);
}

void RankScript::fail() {
  std::thread aborter;
  if (is_victim() && cell_.fault == Fault::kAbort)
    aborter = std::thread([this] {
      await_gate(shared_, kFaultGate);
      hepCommAbort(work_.comm());
    });

  if (cell_.phase == Phase::kDestroy) {
    if (is_victim() && !cell_.victim_survives()) await_gate(shared_, kRenewGate);
    if (aborter.joinable()) aborter.join();
    const double begin = now_ms();
    return keep(work_.end(), begin);
  }
  hepOperation_t operation = operation_of(cell_.phase);
  if (is_victim() && cell_.fault == Fault::kOrder) operation = following(operation);
  const bool rests = cell_.phase == Phase::kIdle &&
                     (is_victim() || cell_.fault == Fault::kKill || cell_.fault == Fault::kAbort);
  const hepResult_t result = rests ? wait_for_error() : run_until_failure(operation);
  keep(result, shared_.fault_time.load());
  if (aborter.joinable()) aborter.join();
}

hepResult_t RankScript::async_error() {
  hepResult_t error = hepSuccess;
  require(hepCommGetAsyncError(work_.comm(), &error));
  return error;
}

// One operation after the other: what the victim had done before the fault may serve for the first.
hepResult_t RankScript::run_until_failure(hepOperation_t operation) {
  for (;; operation = following(operation)) {
    hepResult_t result = hepSuccess;
    if (cell_.phase == Phase::kGraph)
      work_.replay();
    else
      result = work_.issue(operation);
    if (result != hepSuccess) return result;
    work_.synchronize();
    result = async_error();
    if (result != hepSuccess) return result;
  }
}

hepResult_t RankScript::wait_for_error() {
  const double deadline = now_ms() + kPatienceMs;
  hepResult_t error = hepSuccess;
  while ((error = async_error()) == hepSuccess && now_ms() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return error;
}

// Those that are left make a communicator of their own.
void RankScript::renew() {
  const std::vector<int> ranks = cell_.survivors();
  const auto place = std::find(ranks.begin(), ranks.end(), rank_) - ranks.begin();
  Work next(options().backend, static_cast<int>(place), static_cast<int>(ranks.size()));
  require(next.start(id(1, ranks[0]), {kLongTimeoutMs, kLongTimeoutMs}));
  const std::string wrong = next.check_round();
  if (!wrong.empty()) complain("after the fault: " + wrong);
  require(next.end());
}

}  // namespace faults
