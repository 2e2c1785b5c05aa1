// SPDX-License-Identifier: Apache-2.0
// Waits of the host backend that end without what they waited for.
#include <new>

#include "backend/host/operation.h"
#include "host_ranks.h"
#include "protocol/call_summary.h"
#include "protocol/signals.h"

namespace hep {
namespace {

void expect_failure(const hepFailure_t& failure, hepResult_t result, hepOperation_t operation,
                    hepPhase_t phase, uint64_t number, uint64_t expected, uint64_t seen) {
  EXPECT_EQ(failure.result, result);
  EXPECT_EQ(failure.operation, operation);
  EXPECT_EQ(failure.phase, phase);
  EXPECT_EQ(failure.rank, 0);
  EXPECT_EQ(failure.missing_rank, 1);
  EXPECT_EQ(failure.number, number);
  EXPECT_EQ(failure.expected, expected);
  EXPECT_EQ(failure.seen, seen);
}

class HostBackendFailure : public ::testing::Test {
 protected:
  HostBackendFailure() {
    Options options;
    options.timeout_ms = kShortTimeoutMs;
    ranks_ = std::make_unique<Ranks>(options);
  }

  // Rank 0's dispatch of one token, with nobody to answer.
  Status dispatch_alone() {
    rows_ = canary_rows(1);
    return ranks_->dispatch_one(0, dispatch_args(hepLayoutFlat, x_, rows_));
  }
  Status combine_alone() {
    rows_ = canary_rows(1);
    return ranks_->combine_one(0, combine_args(hepLayoutFlat, hepWeightsNone, x_, rows_));
  }

  // The updates that come before must not fall to the short timeout on a busy machine: the ranks'
  // records, of no tokens, are simply there.
  void update_alone(const Ints& indices) {
    ranks_->record_header(0, 1, 1).top_k = kTopK;
    ranks_->signals(0, 1).records_ready = 1;
    Ranks::expect_ok(ranks_->update_one(0, indices, kTopK));
  }

  // As rank 1 does in its first dispatch.
  void publish_rows(const hepDispatchArgs_t& call) {
    RowsSignal& signal = ranks_->signals(0, 1).rows_of(1);
    signal.call = summary_of(call, 0, 1);
    signal.ready = 1;
  }

  std::unique_ptr<Ranks> ranks_;
  const Matrix x_ = rows_of({1});
  Matrix rows_;
};

TEST_F(HostBackendFailure, UpdateNamesThePeerThatNeverCalls) {
  const Status status = ranks_->update_one(0, {0, 2}, kTopK);
  EXPECT_EQ(status.result(), hepErrorTimeout);
  EXPECT_NE(status.message().find("rank 1"), std::string::npos) << status.message();
  expect_failure(ranks_->backend(0).failure(), hepErrorTimeout, hepOperationRouting,
                 hepPhaseRecords, 1, 1, 0);
  EXPECT_EQ(ranks_->backend(1).failure().result, hepSuccess);
}

TEST_F(HostBackendFailure, UpdateNamesThePeerWithAnotherTopK) {
  ranks_->record_header(0, 1, 1).top_k = 1;
  ranks_->signals(0, 1).records_ready = 1;
  const Status status = ranks_->update_one(0, {0, 2}, kTopK);
  EXPECT_EQ(status.result(), hepErrorMismatch);
  EXPECT_NE(status.message().find("rank 1 has top_k 1"), std::string::npos) << status.message();
  expect_failure(ranks_->backend(0).failure(), hepErrorMismatch, hepOperationRouting,
                 hepPhaseRecords, 1, kTopK, 1);
}

TEST_F(HostBackendFailure, DispatchNamesThePeerThatNeverPublishesRows) {
  update_alone({0, 2});
  EXPECT_EQ(dispatch_alone().result(), hepErrorTimeout);
  expect_failure(ranks_->backend(0).failure(), hepErrorTimeout, hepOperationDispatch, hepPhaseRows,
                 1, 1, 0);
}

TEST_F(HostBackendFailure, DispatchNamesThePeerThatNeverPublishesWeights) {
  update_alone({0, 2});
  ranks_->signals(0, 1).rows_of(1).has_weights = 1;
  publish_rows(dispatch_args(hepLayoutFlat, x_, rows_));
  EXPECT_EQ(dispatch_alone().result(), hepErrorTimeout);
  expect_failure(ranks_->backend(0).failure(), hepErrorTimeout, hepOperationDispatch,
                 hepPhaseWeights, 1, 1, 0);
}

TEST_F(HostBackendFailure, DispatchNamesThePeerThatNeverReads) {
  update_alone({0, 2});
  publish_rows(dispatch_args(hepLayoutFlat, x_, rows_));
  EXPECT_EQ(dispatch_alone().result(), hepErrorTimeout);
  expect_failure(ranks_->backend(0).failure(), hepErrorTimeout, hepOperationDispatch,
                 hepPhaseReaders, 1, 1, 0);
}

TEST_F(HostBackendFailure, DispatchTellsOfAPeerThatCallsItOtherwise) {
  update_alone({0, 2});
  hepDispatchArgs_t theirs = dispatch_args(hepLayoutExpertMajor, x_, rows_);
  theirs.type = hepTypeFloat16;
  publish_rows(theirs);
  const Status status = dispatch_alone();
  EXPECT_EQ(status.result(), hepErrorMismatch);
  for (const char* part : {"dispatch 1", "rank 1", "expert-major", "hepTypeFloat16", "flat",
                           "hepTypeBfloat16", "update 1"})
    EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
  const hepDispatchArgs_t own = dispatch_args(hepLayoutFlat, x_, rows_);
  expect_failure(ranks_->backend(0).failure(), hepErrorMismatch, hepOperationDispatch, hepPhaseRows,
                 1, summary_of(own, 1, 1), summary_of(theirs, 0, 1));
}

TEST_F(HostBackendFailure, CombineTellsOfAPeerThatCallsItOtherwise) {
  update_alone({0, 2});
  rows_ = canary_rows(1);
  const hepCombineArgs_t own = combine_args(hepLayoutFlat, hepWeightsNone, x_, rows_);
  OutputsSignal& signal = ranks_->signals(0, 1).outputs_of(1);
  signal.call = summary_of(own, 0, 0, 2);
  signal.ready = 1;
  const Status status = combine_alone();
  EXPECT_EQ(status.result(), hepErrorMismatch);
  for (const char* part : {"combine 1", "rank 1", "update 2", "update 1"})
    EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
  expect_failure(ranks_->backend(0).failure(), hepErrorMismatch, hepOperationCombine,
                 hepPhasePartials, 1, summary_of(own, 1, 1, 1), summary_of(own, 0, 0, 2));
}

TEST_F(HostBackendFailure, CombineNamesThePeerThatNeverSendsItsSums) {
  update_alone({0, 2});
  EXPECT_EQ(combine_alone().result(), hepErrorTimeout);
  expect_failure(ranks_->backend(0).failure(), hepErrorTimeout, hepOperationCombine,
                 hepPhasePartials, 1, 1, 0);
}

TEST_F(HostBackendFailure, CombineNamesThePeerThatNeverFreesItsSlots) {
  update_alone({});  // without tokens of its own the first combine waits for nobody
  Ranks::expect_ok(combine_alone());
  EXPECT_EQ(combine_alone().result(), hepErrorTimeout);
  expect_failure(ranks_->backend(0).failure(), hepErrorTimeout, hepOperationCombine, hepPhaseSlots,
                 2, 1, 0);
}

TEST_F(HostBackendFailure, LaterOperationsReturnTheFirstError) {
  const Status first = ranks_->update_one(0, {0, 2}, kTopK);
  ranks_->backend(0).abort();
  hepRoutingCounts_t counts{};
  for (const Status& later : {ranks_->update_one(0, {0, 2}, kTopK), dispatch_alone(),
                              combine_alone(), ranks_->routing(0).query(&counts, nullptr)}) {
    EXPECT_EQ(later.result(), hepErrorTimeout);
    EXPECT_EQ(later.message(), first.message());
  }
  expect_failure(ranks_->backend(0).failure(), hepErrorTimeout, hepOperationRouting,
                 hepPhaseRecords, 1, 1, 0);
}

TEST(HostBackend, AbortFromAnotherThreadEndsARunningWait) {
  Ranks ranks(Options{});
  Status status;
  std::thread caller([&] { status = ranks.update_one(0, {0, 2}, kTopK); });
  // Once rank 0 has sent its records it can only wait for those of rank 1.
  while (__atomic_load_n(&ranks.signals(1, 0).records_ready, __ATOMIC_ACQUIRE) == 0)
    std::this_thread::yield();
  ranks.backend(0).abort();
  caller.join();
  EXPECT_EQ(status.result(), hepErrorAborted);
  expect_failure(ranks.backend(0).failure(), hepErrorAborted, hepOperationRouting, hepPhaseRecords,
                 1, 1, 0);
}

TEST(HostBackend, OperationAfterAnAbortIsRefused) {
  Ranks ranks(Options{});
  ranks.backend(0).abort();
  EXPECT_EQ(ranks.update_one(0, {0, 2}, kTopK).result(), hepErrorAborted);
  const hepFailure_t failure = ranks.backend(0).failure();
  EXPECT_EQ(failure.result, hepErrorAborted);
  EXPECT_EQ(failure.phase, hepPhaseNone);
  EXPECT_EQ(failure.missing_rank, -1);
  EXPECT_EQ(ranks.signals(1, 0).records_ready, 0u);
}

TEST(HostBackend, AStopEndsARunningWaitWithItsResult) {
  Ranks ranks(Options{});
  std::thread caller([&] { EXPECT_FALSE(ranks.update_one(0, {0, 2}, kTopK).ok()); });
  while (__atomic_load_n(&ranks.signals(1, 0).records_ready, __ATOMIC_ACQUIRE) == 0)
    std::this_thread::yield();
  ranks.backend(0).stop(hepErrorPeerLost);
  caller.join();
  expect_failure(ranks.backend(0).failure(), hepErrorPeerLost, hepOperationRouting, hepPhaseRecords,
                 1, 1, 0);
}

TEST(HostBackend, TheFirstStopCounts) {
  Ranks ranks(Options{});
  ranks.backend(0).stop(hepErrorPeerLost);
  ranks.backend(0).stop(hepErrorTimeout);
  ranks.backend(0).abort();
  const hepFailure_t failure = ranks.backend(0).failure();
  EXPECT_EQ(failure.result, hepErrorPeerLost);
  EXPECT_EQ(failure.operation, hepOperationNone);
  EXPECT_EQ(failure.missing_rank, -1);
  EXPECT_EQ(ranks.update_one(0, {0, 2}, kTopK).result(), hepErrorPeerLost);
}

TEST(HostBackend, APeerThatLeftEndsOnlyWaitsForWhatItHasNotSignalled) {
  Ranks ranks(Options{});
  ranks.record_header(0, 1, 1).top_k = kTopK;
  ranks.signals(0, 1).records_ready = 1;
  ranks.backend(0).peer_left(1);
  EXPECT_EQ(ranks.backend(0).failure().result, hepSuccess);
  Ranks::expect_ok(ranks.update_one(0, {0, 2}, kTopK));
  EXPECT_EQ(ranks.update_one(0, {0, 2}, kTopK).result(), hepErrorPeerLost);
  expect_failure(ranks.backend(0).failure(), hepErrorPeerLost, hepOperationRouting, hepPhaseRecords,
                 2, 2, 1);
}

// The last ranks of two domains stay away; nobody delivers anything.
TEST(HostDomains, UpdateNamesTheRankOfAnotherDomainAndTheRankByWayOfWhichItsRecordsCome) {
  Options options;
  options.num_ranks = 4;
  options.num_experts = 4;
  options.domain_size = 2;
  options.timeout_ms = kShortTimeoutMs;
  Ranks ranks(options);
  ranks.run([&](int rank) {
    if (rank >= 2) return;
    const Status status = ranks.update_one(rank, Ints{3, 0}, 2);
    EXPECT_EQ(status.result(), hepErrorTimeout);
    EXPECT_NE(status.message().find("rank 2, over the network by way of rank 0, to send its "
                                    "routing records"),
              std::string::npos)
        << status.message();
    const hepFailure_t failure = ranks.backend(rank).failure();
    EXPECT_EQ(failure.phase, hepPhaseRecords);
    EXPECT_EQ(failure.missing_rank, 2);
    EXPECT_EQ(failure.via_rank, 0);
  });
}

// A rank that has left wrote all that it had to; the rank by way of which it comes knows alone
// whether all has been counted.
TEST(HostDomains, ARankOfAnotherDomainThatLeftEndsTheWaitsOfTheRankByWayOfWhichItsRecordsCome) {
  Options options;
  options.num_ranks = 4;
  options.domain_size = 2;
  options.timeout_ms = kShortTimeoutMs;
  Ranks ranks(options);
  for (int rank = 0; rank < 2; ++rank) ranks.backend(rank).peer_left(2);
  ranks.run([&](int rank) {
    if (rank >= 2) return;
    const Status status = ranks.update_one(rank, Ints{3, 0}, 2);
    EXPECT_EQ(status.result(), rank == 0 ? hepErrorPeerLost : hepErrorTimeout) << status.message();
    EXPECT_EQ(ranks.backend(rank).failure().missing_rank, 2);
  });
}

// The peers take part in an operation that has begun, so that it cannot be made again.
TEST(HostOperation, WhoseMemoryRunsOutFailsTheCommunicator) {
  Waiter waiter(0, kLongTimeoutMs);
  const Lane lane{};
  const LaneContext context{lane, 0, {}};
  const Operation operation(context, waiter, nullptr, hepOperationCombine, 3);
  EXPECT_TRUE(operation.run([] { return Status(); }).ok());
  EXPECT_EQ(waiter.failure().result, hepSuccess);
  const Status status = operation.run([]() -> Status { throw std::bad_alloc(); });
  EXPECT_EQ(status.result(), hepErrorOutOfMemory);
  const hepFailure_t failure = waiter.failure();
  EXPECT_EQ(failure.result, hepErrorOutOfMemory);
  EXPECT_EQ(failure.operation, hepOperationCombine);
  EXPECT_EQ(failure.number, 3u);
  EXPECT_EQ(failure.missing_rank, 0);
}

}  // namespace
}  // namespace hep
