// SPDX-License-Identifier: Apache-2.0
// A step that all ranks take or none: what comes of it for a rank whose peers say all kinds of
// things.
#include "comm/agreement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <vector>

namespace hep {
namespace {

using Message = AgreementMessage<int>;

// Rank 0 agrees with a peer that says `theirs`.
Status agree_with(const Message& theirs, const Status& own, std::vector<int>* payloads) {
  const auto exchange = [&theirs](const void* send, void* receive, size_t) {
    const Message said[] = {*static_cast<const Message*>(send), theirs};
    std::copy(std::begin(said), std::end(said), static_cast<Message*>(receive));
    return Status();
  };
  return agree_over(exchange, 2, own, 5, payloads);
}

Message failed(int result, const std::string& text) {
  Message message{};
  message.result = result;
  text.copy(message.text, sizeof message.text);
  return message;
}

TEST(Agreement, GivesThePayloadsOfAllRanks) {
  Message theirs{};
  theirs.payload = 7;
  std::vector<int> payloads;
  EXPECT_TRUE(agree_with(theirs, Status(), &payloads).ok());
  EXPECT_EQ(payloads, (std::vector<int>{5, 7}));
}

TEST(Agreement, FailsWithTheResultOfThisRankAndTheSentencesOfAll) {
  std::vector<int> payloads;
  const Status status = agree_with(failed(hepErrorSystem, "no window"),
                                   error(hepErrorCuda, "rank 0: no device"), &payloads);
  EXPECT_EQ(status.result(), hepErrorCuda);
  EXPECT_EQ(status.message(), "rank 0: no device; rank 1: no window");
  EXPECT_TRUE(payloads.empty());
}

TEST(Agreement, LeavesOutTheGuessOfARankThatWaitedWhereAnotherKnows) {
  const Status guess = error(hepErrorTimeout, "rank 0: no connection from rank 2");
  std::vector<int> payloads;
  const Status status = agree_with(failed(hepErrorSystem, "no descriptor"), guess, &payloads);
  EXPECT_EQ(status.result(), hepErrorSystem);
  EXPECT_EQ(status.message(), "rank 1: no descriptor");
  EXPECT_EQ(agree_with(failed(hepErrorTimeout, "none"), guess, &payloads).message(),
            "rank 0: no connection from rank 2; rank 1: none");
}

TEST(Agreement, PrefersWhatTheExchangeKnowsToTheGuessOfThisRank) {
  const auto agree = [](const Status& own) {
    const auto exchange = [](const void*, void*, size_t) {
      return error(hepErrorPeerLost, "rank 3 is gone");
    };
    return agree_over(exchange, 2, own, 5, static_cast<std::vector<int>*>(nullptr));
  };
  EXPECT_EQ(agree(error(hepErrorTimeout, "no connection from rank 2")).message(), "rank 3 is gone");
  EXPECT_EQ(agree(error(hepErrorPeerLost, "rank 2 is gone")).message(), "rank 3 is gone");
  EXPECT_EQ(agree(error(hepErrorSystem, "no descriptor")).message(), "no descriptor");
}

TEST(Agreement, TakesANumberThatIsNoResultForAnInternalError) {
  for (const int result : {-1, 15, 1000}) {
    std::vector<int> payloads;
    const Status status = agree_with(failed(result, "something new"), Status(), &payloads);
    EXPECT_EQ(status.result(), hepErrorInternal);
    EXPECT_EQ(status.message(), "rank 1: something new");
  }
}

TEST(Agreement, ReadsNoTextPastItsEnd) {
  Message theirs = failed(hepErrorSystem, std::string(sizeof theirs.text, 'x'));
  theirs.payload = 0x79797979;  // follows the text
  std::vector<int> payloads;
  const Status status = agree_with(theirs, Status(), &payloads);
  EXPECT_EQ(status.message(), "rank 1: " + std::string(sizeof theirs.text - 1, 'x'));
}

}  // namespace
}  // namespace hep
