// SPDX-License-Identifier: Apache-2.0
// The bootstrap: ranks as threads and as processes, among peers that fail.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bootstrap_fixture.h"

namespace hep {
namespace {

// ---------------------------------------------------------------------------------- healthy jobs

TEST(SipHash, GivesTheTestVectorOfThePaper) {
  // Aumasson and Bernstein, "SipHash: a fast short-input PRF", appendix A.
  SipKey key;
  uint8_t message[15];
  for (int i = 0; i < 16; ++i) key[i] = i;
  for (int i = 0; i < 15; ++i) message[i] = i;
  EXPECT_EQ(siphash(key, message, sizeof message), 0xa129ca6149be45e5u);
}

class BootstrapRanksTest : public BootstrapTest, public testing::WithParamInterface<int> {};

TEST_P(BootstrapRanksTest, EveryRankReceivesTheDataOfAllRanksInEachPhase) {
  run_job(new_id(), GetParam());
}

INSTANTIATE_TEST_SUITE_P(Ranks, BootstrapRanksTest, testing::Values(1, 2, 5, 64));

TEST_F(BootstrapTest, RanksMayBeProcesses) {
  constexpr int kRanks = 4;
  const hepUniqueId_t id = new_id();
  vector<pid_t> children;
  for (int rank = 1; rank < kRanks; ++rank) {
    const pid_t child = ::fork();
    if (child == 0) {
      std::unique_ptr<Bootstrap> bootstrap;
      const bool good = Bootstrap::join(id, rank, kRanks, later(), &bootstrap).ok() &&
                        gathers_correctly(*bootstrap, rank, kRanks);
      ::_exit(good ? 0 : 1);
    }
    children.push_back(child);
  }
  const auto bootstrap = joined(id, 0, kRanks);
  EXPECT_TRUE(bootstrap && gathers_correctly(*bootstrap, 0, kRanks));
  for (const pid_t child : children) {
    int status = -1;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
}

TEST_F(BootstrapTest, SeveralJobsDoNotDisturbEachOther) {
  on_threads(4, [](int) { run_job(new_id(), 3); });
}

TEST_F(BootstrapTest, TheLargestMessageIsRelayedAndALargerOneRefused) {
  const hepUniqueId_t id = new_id();
  on_threads(2, [&](int rank) {
    const auto bootstrap = joined(id, rank, 2);
    ASSERT_TRUE(bootstrap);
    vector<char> mine(Bootstrap::kMaxBytes + 1, static_cast<char>('a' + rank));
    vector<char> all(2 * mine.size());
    expect_error(bootstrap->all_gather(mine.data(), all.data(), mine.size(), "large", later()),
                 hepErrorInvalidArgument, {"large", "1048577"});
    const size_t most = Bootstrap::kMaxBytes;
    EXPECT_TRUE(bootstrap->all_gather(mine.data(), all.data(), most, "large", later()).ok());
    EXPECT_EQ(string(all.data(), 2 * most), string(most, 'a') + string(most, 'b'));
  });
}

// Until then a rank whose connection breaks may come again.
TEST_F(BootstrapTest, NothingListensOnceAllRanksHaveExchanged) {
  const hepUniqueId_t id = new_id();
  const auto bootstrap = joined(id, 0, 1);
  char mine = 1, all = 0;
  EXPECT_TRUE(bootstrap->all_gather(&mine, &all, 1, "first", later()).ok());
  EXPECT_TRUE(comes_true([&] { return !Stranger(contents_of(id)).connected(); }));
}

TEST_F(BootstrapTest, ARendezvousThatNobodyJoinsEnds) {
  ::setenv("HEP_RENDEZVOUS_TIMEOUT_MS", "100", 1);
  const Rendezvous rendezvous = contents_of(new_id());
  EXPECT_TRUE(comes_true([&] { return !Stranger(rendezvous).connected(); }));
}

TEST_F(BootstrapTest, OnlyTheAddressThatIsSetIsOffered) {
  for (const string address : {"127.0.0.1", "::1"}) {
    ::setenv("HEP_RENDEZVOUS_ADDRESS", address.c_str(), 1);
    hepUniqueId_t id;
    const Status status = create_unique_id(&id);
    if (address == "::1" && status.result() == hepErrorSystem) continue;  // no IPv6 here
    ASSERT_TRUE(status.ok()) << status.message();
    const Rendezvous rendezvous = contents_of(id);
    ASSERT_EQ(rendezvous.addresses.size(), 1u);
    EXPECT_EQ(address_text(rendezvous.addresses[0], 7),
              address == "::1" ? "[::1]:7" : "127.0.0.1:7");
    run_job(id, 2);
  }
}

TEST_F(BootstrapTest, AnAddressThatIsNoneIsRefused) {
  for (const char* text : {"localhost", "1.2.3", "0.0.0.0", "::", "1.2.3.4:80"}) {
    ::setenv("HEP_RENDEZVOUS_ADDRESS", text, 1);
    hepUniqueId_t id;
    expect_error(create_unique_id(&id), hepErrorInvalidArgument, {"HEP_RENDEZVOUS_ADDRESS", text});
  }
}

// ------------------------------------------------------------------------------ ranks that fail

TEST_F(BootstrapTest, AnIdWithAnyByteChangedIsRefused) {
  ::setenv("HEP_RENDEZVOUS_TIMEOUT_MS", "50", 1);
  const hepUniqueId_t id = new_id();
  for (size_t i = 0; i < sizeof id.bytes; ++i) {
    hepUniqueId_t damaged = id;
    damaged.bytes[i] ^= 0x40;
    expect_error(join(damaged, 3, 4, later()), hepErrorInvalidArgument, {"rank 3", "unique id"});
  }
  expect_error(join(hepUniqueId_t{}, 3, 4, later()), hepErrorInvalidArgument, {"unique id"});
}

TEST_F(BootstrapTest, RanksOutOfRangeAreRefused) {
  const hepUniqueId_t none{};
  expect_error(join(none, 2, 2, later()), hepErrorInvalidArgument, {"rank is 2"});
  expect_error(join(none, -1, 2, later()), hepErrorInvalidArgument, {"rank is -1"});
  expect_error(join(none, 0, 0, later()), hepErrorInvalidArgument, {"num_ranks is 0"});
  expect_error(join(none, 0, 73, later()), hepErrorInvalidArgument, {"num_ranks is 73", "72"});
}

TEST_F(BootstrapTest, RanksThatNeverComeAreNamed) {
  expect_error(join(new_id(), 1, 4, Deadline::after_ms(3 * kShortMs)), hepErrorTimeout,
               {"rank 1: ", "'join'", "ranks 0, 2, 3"});
}

TEST_F(BootstrapTest, ARankThatStaysAwayFromAPhaseIsNamedToAll) {
  const hepUniqueId_t id = new_id();
  std::atomic<int> failed{0};
  on_threads(3, [&](int rank) {
    const auto bootstrap = joined(id, rank, 3);
    ASSERT_TRUE(bootstrap);
    if (rank == 2) {  // stays, and learns later what it missed
      EXPECT_TRUE(comes_true([&] { return failed == 2; }));
    }
    for (const char* phase : {"exchange", "afterwards"})
      expect_error(bootstrap->all_gather(nullptr, nullptr, 0, phase, soon()), hepErrorTimeout,
                   {"'exchange'", "for rank 2"});
    ++failed;
    EXPECT_TRUE(comes_true([&] { return failed == 3; }));
  });
}

TEST_F(BootstrapTest, ARankThatLeavesIsNamedToThoseWhoWaitForIt) {
  const hepUniqueId_t id = new_id();
  on_threads(5, [&](int rank) {
    auto bootstrap = joined(id, rank, 5);
    ASSERT_TRUE(bootstrap);
    if (rank == 3) return;
    expect_error(bootstrap->all_gather(nullptr, nullptr, 0, "exchange", later()), hepErrorPeerLost,
                 {"'exchange'", "rank 3"});
  });
}

TEST_F(BootstrapTest, ARankThatLeavesIsNewsForThoseWhoWaitElsewhere) {
  const hepUniqueId_t id = new_id();
  on_threads(3, [&](int rank) {
    auto bootstrap = joined(id, rank, 3);
    ASSERT_TRUE(bootstrap);
    if (rank == 2) return;
    const Deadline deadline = later().or_interrupt(bootstrap->interrupt());
    while (!deadline.expired()) ::poll(nullptr, 0, deadline.remaining_ms());
    EXPECT_GT(deadline.left_ms(), 0);
    expect_error(bootstrap->all_gather(nullptr, nullptr, 0, "exchange", later()), hepErrorPeerLost,
                 {"'exchange'", "rank 2 is gone"});
  });
}

TEST_F(BootstrapTest, ARankThatFailsIsNewsForThoseWhoWaitElsewhere) {
  const hepUniqueId_t id = new_id();
  on_threads(3, [&](int rank) {
    auto bootstrap = joined(id, rank, 3);
    ASSERT_TRUE(bootstrap);
    const Deadline deadline = later().or_interrupt(bootstrap->interrupt());
    if (rank == 1) bootstrap->fail(error(hepErrorSystem, "rank 1: no descriptor"));
    while (!deadline.expired()) ::poll(nullptr, 0, deadline.remaining_ms());
    EXPECT_GT(deadline.left_ms(), 0);
    expect_error(bootstrap->all_gather(nullptr, nullptr, 0, "exchange", later()), hepErrorSystem,
                 {"'exchange'", "rank 1: no descriptor"});
  });
}

TEST_F(BootstrapTest, AProcessThatIsKilledIsNoticedByThoseWhoWaitForIt) {
  const hepUniqueId_t id = new_id();
  const pid_t child = ::fork();
  if (child == 0) {
    std::unique_ptr<Bootstrap> bootstrap;
    if (Bootstrap::join(id, 1, 2, later(), &bootstrap).ok()) ::pause();
    ::_exit(1);
  }
  const auto bootstrap = joined(id, 0, 2);
  std::thread waiting([&] {
    expect_error(bootstrap->all_gather(nullptr, nullptr, 0, "exchange", later()), hepErrorPeerLost,
                 {"'exchange'", "rank 1"});
  });
  ::kill(child, SIGKILL);
  waiting.join();
  ::waitpid(child, nullptr, 0);
}

TEST_F(BootstrapTest, TheEndOfTheHubsProcessIsNoticed) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const Descriptor read_end(ends[0]);
  Descriptor write_end(ends[1]);
  const pid_t child = ::fork();
  if (child == 0) {
    hepUniqueId_t id;
    const bool good = create_unique_id(&id).ok() && ::write(ends[1], &id, sizeof id) == sizeof id;
    if (good) ::pause();
    ::_exit(1);
  }
  hepUniqueId_t id;
  ASSERT_EQ(::read(read_end.get(), &id, sizeof id), static_cast<ssize_t>(sizeof id));
  const auto bootstrap = joined(id, 0, 1);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  expect_error(bootstrap->all_gather(nullptr, nullptr, 0, "exchange", later()), hepErrorPeerLost,
               {"rank 0", "'exchange'"});
  expect_error(join(id, 0, 1, Deadline::after_ms(100)), hepErrorTimeout,
               {"rank 0", std::to_string(contents_of(id).port)});
}

TEST_F(BootstrapTest, RanksInDifferentPhasesAreNamedWithThem) {
  const hepUniqueId_t id = new_id();
  on_threads(2, [&](int rank) {
    const auto bootstrap = joined(id, rank, 2);
    ASSERT_TRUE(bootstrap);
    expect_error(
        bootstrap->all_gather(nullptr, nullptr, 0, rank == 0 ? "config" : "memory", later()),
        hepErrorMismatch, {"rank 0", "'config'", "rank 1", "'memory'"});
  });
}

TEST_F(BootstrapTest, RanksThatGiveDifferentSizesAreNamedWithThem) {
  const hepUniqueId_t id = new_id();
  on_threads(2, [&](int rank) {
    const auto bootstrap = joined(id, rank, 2);
    ASSERT_TRUE(bootstrap);
    char mine[32] = {}, all[64];
    expect_error(bootstrap->all_gather(mine, all, rank == 0 ? 24 : 32, "exchange", later()),
                 hepErrorMismatch, {"rank 0", "24 bytes", "rank 1", "32 bytes", "'exchange'"});
  });
}

// Takes a seat as a rank does that has not seen the welcome yet.
std::unique_ptr<Stranger> seated(const Rendezvous& rendezvous, int rank, uint32_t visit) {
  auto stranger = std::make_unique<Stranger>(rendezvous);
  const wire::Join join =
      make_join(rendezvous.secret, stranger->challenge(), rank, 2, kLongMs, visit);
  stranger->send_frame(kJoinHeader, &join, sizeof join);
  EXPECT_EQ(stranger->next_type(), wire::FrameType::kWelcome);
  return stranger;
}

void contribute(Stranger& rank, const char* phase) {
  wire::Gather gather{0, kLongMs, {}};
  std::snprintf(gather.phase, sizeof gather.phase, "%s", phase);
  rank.send_frame(wire::make_header(wire::FrameType::kGather, sizeof gather), &gather,
                  sizeof gather);
}

TEST_F(BootstrapTest, ARankWhoseConnectionBrokeTakesItsSeatAgain) {
  const hepUniqueId_t id = new_id();
  const Rendezvous rendezvous = contents_of(id);
  seated(rendezvous, 0, 7).reset();
  std::thread other([&] { EXPECT_TRUE(joined(id, 1, 2)); });
  const auto again = seated(rendezvous, 0, 7);
  contribute(*again, "join");
  EXPECT_EQ(again->next_type(), wire::FrameType::kResult);
  other.join();
}

TEST_F(BootstrapTest, ARankTakesItsSeatAgainBeforeItsOldConnectionIsKnownToHaveBroken) {
  const hepUniqueId_t id = new_id();
  const Rendezvous rendezvous = contents_of(id);
  const auto before = seated(rendezvous, 0, 7);
  const auto again = seated(rendezvous, 0, 7);
  EXPECT_TRUE(before->is_refused());
  std::thread other([&] { EXPECT_TRUE(joined(id, 1, 2)); });
  contribute(*again, "join");
  EXPECT_EQ(again->next_type(), wire::FrameType::kResult);
  other.join();
}

TEST_F(BootstrapTest, AnotherProcessDoesNotTakeTheSeatOfARank) {
  const hepUniqueId_t id = new_id();
  const Rendezvous rendezvous = contents_of(id);
  const auto first = seated(rendezvous, 0, 7);
  const auto second = seated(rendezvous, 0, 8);
  EXPECT_EQ(second->next_type(), wire::FrameType::kFailure);
  expect_error(join(id, 1, 2, later()), hepErrorMismatch, {"rank 0 came twice"});
}

TEST_F(BootstrapTest, ARankThatDoesNotTakeItsSeatAgainIsNamedLongBeforeTheDeadline) {
  const hepUniqueId_t id = new_id();
  seated(contents_of(id), 0, 7).reset();
  expect_error(join(id, 1, 2, later()), hepErrorPeerLost, {"rank 0 is gone"});
}

TEST_F(BootstrapTest, ARankThatComesTwiceIsAnErrorOnAllRanksThatComeLaterToo) {
  const hepUniqueId_t id = new_id();
  const auto join_and_fail = [&](int rank) {
    expect_error(join(id, rank, 3, later()), hepErrorMismatch,
                 {"rank " + std::to_string(rank) + ": ", "rank 1 came twice, from 127.0.0.1:"});
  };
  on_threads(2, [&](int) { join_and_fail(1); });
  join_and_fail(0);
  join_and_fail(2);
}

TEST_F(BootstrapTest, RanksThatDisagreeOnTheNumberOfRanksAreNamedWithIt) {
  const hepUniqueId_t id = new_id();
  on_threads(2, [&](int rank) {
    expect_error(join(id, rank, 4 + rank, Deadline::after_ms(2 * kShortMs)), hepErrorMismatch,
                 {"rank 0", "there are 4", "rank 1", "there are 5"});
  });
}

}  // namespace
}  // namespace hep
