// SPDX-License-Identifier: Apache-2.0
// How an id comes to the ranks: opening its rendezvous, and a callback that carries it.
#include <gtest/gtest.h>
#include <signal.h>

#include <cstdlib>
#include <string>

#include "bootstrap_fixture.h"

namespace hep {
namespace {

TEST_F(BootstrapTest, ARendezvousForThisMachineListensOnLoopbackAlone) {
  const Rendezvous network = contents_of(new_id());
  ::setenv("HEP_RENDEZVOUS_ADDRESS", "192.0.2.1", 1);  // is for those on the network
  hepUniqueId_t id;
  ASSERT_TRUE(create_unique_id(&id, Reach::kMachine).ok());
  const Rendezvous machine = contents_of(id);
  ASSERT_EQ(machine.addresses.size(), 1u);
  EXPECT_TRUE(is_loopback(machine.addresses[0]));
  for (const in6_addr& address : network.addresses)
    EXPECT_EQ(Stranger({{address}, machine.port, 0, {}}).connected(), is_loopback(address))
        << address_text(address, machine.port);
  run_job(id, 2);
  EXPECT_TRUE(join(write_unique_id(network), 0, 1, later()).ok());
}

TEST_F(BootstrapTest, ACallbackCarriesTheIdOfRankZeroToAllInOneCall) {
  constexpr int kRanks = 4;
  ThreadGather group(kRanks);
  on_threads(kRanks, [&](int rank) {
    ThreadGather::Member member{&group, rank};
    hepUniqueId_t id{};
    const Status status =
        unique_id_over_callback(ThreadGather::gather, &member, rank, kRanks, Status(), &id);
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(member.calls, 1);
    const auto bootstrap = joined(id, rank, kRanks);
    EXPECT_TRUE(bootstrap && gathers_correctly(*bootstrap, rank, kRanks));
  });
}

TEST_F(BootstrapTest, ThatRankZeroCouldNotOpenARendezvousIsToldToAllRanks) {
  ::setenv("HEP_RENDEZVOUS_ADDRESS", "nowhere", 1);
  ThreadGather group(3);
  on_threads(3, [&](int rank) {
    ThreadGather::Member member{&group, rank};
    hepUniqueId_t id{};
    expect_error(unique_id_over_callback(ThreadGather::gather, &member, rank, 3, Status(), &id),
                 hepErrorInvalidArgument,
                 {"rank " + std::to_string(rank) + ": ", "rank 0 could not", "nowhere"});
    EXPECT_EQ(member.calls, 1);
  });
}

TEST_F(BootstrapTest, ARankWithAnErrorOfItsOwnTellsItToAllRanksOverTheCallback) {
  ThreadGather group(3);
  on_threads(3, [&](int rank) {
    ThreadGather::Member member{&group, rank};
    const Status own = rank == 1 ? error(hepErrorUnsupported, "no such thing") : Status();
    hepUniqueId_t id{};
    const Status status = unique_id_over_callback(ThreadGather::gather, &member, rank, 3, own, &id);
    expect_error(status, hepErrorUnsupported, {"no such thing"});
    if (rank != 1) expect_error(status, hepErrorUnsupported, {"rank 1 could not"});
    EXPECT_EQ(member.calls, 1);
  });
}

TEST_F(BootstrapTest, ARankThatWasToldTooFewRanksIsNotWrittenPastItsMemory) {
  ::setenv("HEP_RENDEZVOUS_TIMEOUT_MS", "50", 1);
  constexpr int kRanks = 6;
  ThreadGather group(kRanks);
  on_threads(kRanks, [&](int rank) {
    ThreadGather::Member member{&group, rank};
    hepUniqueId_t id{};
    expect_error(unique_id_over_callback(ThreadGather::gather, &member, rank,
                                         rank == 0 ? 1 : kRanks, Status(), &id),
                 rank == 0 ? hepSuccess : hepErrorMismatch, {});
  });
}

TEST_F(BootstrapTest, WithoutAThreadThereIsNoRendezvousAndSignalsAreAsBefore) {
  sigset_t before, after;
  ASSERT_EQ(::pthread_sigmask(SIG_SETMASK, nullptr, &before), 0);
  {
    const NoThreads no_threads;
    hepUniqueId_t id;
    expect_error(create_unique_id(&id), hepErrorSystem, {"thread"});
  }
  ASSERT_EQ(::pthread_sigmask(SIG_SETMASK, nullptr, &after), 0);
  for (int signal = 1; signal < SIGRTMAX; ++signal)
    EXPECT_EQ(::sigismember(&after, signal), ::sigismember(&before, signal)) << signal;
}

TEST_F(BootstrapTest, ACallbackThatFailsIsAnErrorWithItsNumber) {
  ThreadGather group(2);
  group.result = 17;
  on_threads(2, [&](int rank) {
    ThreadGather::Member member{&group, rank};
    hepUniqueId_t id{};
    expect_error(unique_id_over_callback(ThreadGather::gather, &member, rank, 2, Status(), &id),
                 hepErrorSystem, {"rank " + std::to_string(rank), "17"});
  });
}

TEST_F(BootstrapTest, ACallbackThatMixesUpRanksIsFoundOut) {
  ThreadGather group(2);
  on_threads(2, [&](int rank) {
    ThreadGather::Member member{&group, 1 - rank};
    hepUniqueId_t id{};
    expect_error(unique_id_over_callback(ThreadGather::gather, &member, rank, 2, Status(), &id),
                 hepErrorMismatch, {"rank " + std::to_string(rank), "as that of rank"});
  });
}

// The newest code of the library, and one that only a later version has.
TEST_F(BootstrapTest, AFailureWithAnyCodeIsAFailureOfAllRanks) {
  for (const int code : {int{hepErrorNetwork}, 15}) {
    ThreadGather group(2);
    on_threads(2, [&](int rank) {
      ThreadGather::Member member{&group, rank};
      const Status own(static_cast<hepResult_t>(rank == 0 ? code : 0), "something new");
      hepUniqueId_t id{};
      const Status status =
          unique_id_over_callback(ThreadGather::gather, &member, rank, 2, own, &id);
      if (rank == 1)
        expect_error(status, code == hepErrorNetwork ? hepErrorNetwork : hepErrorInternal,
                     {"rank 1: rank 0 could not", "something new"});
    });
  }
}

TEST_F(BootstrapTest, ACallbackIsNeeded) {
  hepUniqueId_t id;
  expect_error(unique_id_over_callback(nullptr, nullptr, 0, 1, Status(), &id),
               hepErrorInvalidArgument, {"all_gather"});
}

}  // namespace
}  // namespace hep
