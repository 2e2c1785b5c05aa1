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

// Each of several ranks says one of the sentences; a rank without one has not failed.
Status agree_all(const std::vector<std::string>& sentences) {
  const auto exchange = [&sentences](const void*, void* receive, size_t) {
    Message* const messages = static_cast<Message*>(receive);
    for (size_t r = 0; r < sentences.size(); ++r)
      messages[r] = failed(sentences[r].empty() ? hepSuccess : hepErrorSystem, sentences[r]);
    return Status();
  };
  const Status own = sentences[0].empty() ? Status() : Status(hepErrorSystem, sentences[0]);
  return agree_over(exchange, static_cast<int>(sentences.size()), own, 5,
                    static_cast<std::vector<int>*>(nullptr));
}

TEST(Agreement, TellsASentenceOfSeveralRanksOnceWithTheRanksGrouped) {
  EXPECT_EQ(agree_all({"no descriptor", "", "no descriptor"}).message(),
            "ranks 0, 2: no descriptor");
  std::vector<std::string> sentences;
  for (int r = 0; r < 63; ++r) sentences.push_back("rank " + std::to_string(r) + ": no device");
  sentences.push_back("");
  sentences.push_back("rank 64 cannot map the memory of rank 1: no peer access");
  EXPECT_EQ(agree_all(sentences).message(),
            "ranks 0-62: no device; rank 64 cannot map the memory of rank 1: no peer access");
}

TEST(Agreement, ShowsThatASentenceIsTooLongForAMessage) {
  const Status own = error(hepErrorSystem, "rank 0: %s", std::string(600, 'x').c_str());
  std::string message = agree_with(Message{}, own, nullptr).message();
  EXPECT_EQ(message.size(), sizeof(Message::text) - 1);
  EXPECT_EQ(message.substr(message.size() - 4), "x...");
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
