// SPDX-License-Identifier: Apache-2.0
// Ranks take a step together. What fails on one rank fails on all, and all learn why.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/sentence.h"
#include "base/status.h"

namespace hep {

// Each rank sends this to all others after a step. It says whether the step worked, and what comes
// of it.
template <typename Payload>
struct AgreementMessage {
  int32_t result;
  char text[508];
  Payload payload;
};

struct Empty {};

// How well a rank knows why it failed. A rank that waited in vain only guesses who is missing. A
// rank that lost another one may not know why that one failed. Every other failure is the rank's
// own.
enum class Certainty { kGuess, kLoss, kOwn };
constexpr Certainty certainty_of(int32_t result) {
  return result == hepErrorTimeout    ? Certainty::kGuess
         : result == hepErrorPeerLost ? Certainty::kLoss
                                      : Certainty::kOwn;
}

// Returns what a rank said, beginning with the rank's name.
inline std::string attribute(int rank, const char* text) {
  const std::string name = "rank " + std::to_string(rank);
  const char* const rest =
      text + (std::strncmp(text, name.c_str(), name.size()) == 0 ? name.size() : 0);
  return rest != text && (*rest == ' ' || *rest == ':') ? text : name + ": " + text;
}

// The sentences of ranks that failed. Ranks that say the same are told together.
class Sentences {
 public:
  void add(int rank, const std::string& text) {
    const std::string own = "rank " + std::to_string(rank) + ": ";
    const std::string said = text.compare(0, own.size(), own) == 0 ? text.substr(own.size()) : text;
    for (Group& group : groups_)
      if (group.said == said) return group.ranks.push_back(rank);
    groups_.push_back({said, {rank}});
  }

  // Returns for example "ranks 0-62: no device; rank 63: no driver".
  std::string text() const {
    std::string text;
    for (const Group& group : groups_)
      text += (text.empty() ? "" : "; ") + (group.ranks.size() == 1
                                                ? attribute(group.ranks[0], group.said.c_str())
                                                : rank_list(group.ranks) + ": " + group.said);
    return text;
  }

 private:
  struct Group {
    std::string said;
    std::vector<int> ranks;
  };
  std::vector<Group> groups_;
};

// All-gathers by exchange(send, receive, bytes) the payloads of ranks that have come this far. If
// the step failed on any rank, it fails on all with the sentences of all that failed. The result is
// the rank's own if it failed, else that of the lowest rank that did. If a rank knows better, the
// others' sentences do not count.
template <typename Exchange, typename Payload>
Status agree_over(Exchange exchange, int num_ranks, const Status& own, const Payload& payload,
                  std::vector<Payload>* payloads) {
  using Message = AgreementMessage<Payload>;
  Message mine{};
  mine.result = own.result();
  copy_sentence(own.message().c_str(), mine.text, sizeof mine.text);
  mine.payload = payload;
  std::vector<Message> all(num_ranks);
  if (payloads != nullptr) payloads->reserve(num_ranks);  // after the exchange nothing may fail
  const Status exchanged = exchange(&mine, all.data(), sizeof mine);
  if (!exchanged.ok()) {
    const Certainty known = certainty_of(own.result());
    const bool knows_better = known == Certainty::kOwn || known > certainty_of(exchanged.result());
    return !own.ok() && knows_better ? own : exchanged;
  }

  Certainty best = Certainty::kGuess;
  for (const Message& message : all)
    if (message.result != hepSuccess) best = std::max(best, certainty_of(message.result));
  const auto counts = [best](int32_t code) {
    return code != hepSuccess && certainty_of(code) == best;
  };
  hepResult_t result = counts(own.result()) ? own.result() : hepSuccess;
  Sentences sentences;
  for (int r = 0; r < num_ranks; ++r) {
    if (!counts(all[r].result)) continue;
    all[r].text[sizeof all[r].text - 1] = '\0';  // a peer cannot be trusted to have ended its text
    if (result == hepSuccess) result = failure_of(all[r].result);
    sentences.add(r, all[r].text);
  }
  if (result != hepSuccess) return Status(result, sentences.text());
  if (payloads != nullptr) {
    payloads->clear();
    for (const Message& message : all) payloads->push_back(message.payload);
  }
  return Status();
}

}  // namespace hep
