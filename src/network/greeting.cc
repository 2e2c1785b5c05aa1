// SPDX-License-Identifier: Apache-2.0
#include "network/greeting.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <string>
#include <thread>

#include "network/descriptor.h"

namespace hep {
namespace {

// The first round makes the connections. Whoever writes in the second has heard the first of all,
// and all have heard his. So nobody waits for a rank that has returned, but for what it still
// sends.
constexpr int kRounds = 2;

// How long a rank still moves what it has sent last.
constexpr int kLingerMs = 100;

constexpr size_t kMaxSentences = 3;
constexpr std::chrono::microseconds kPause{20};

class Greeting {
 public:
  Greeting(const std::vector<Transport*>& nics, int domain, const GreetingNames& names)
      : nics_(nics), domain_(domain), names_(names) {
    for (size_t nic = 0; nic < nics.size(); ++nic) pairs_.emplace_back(names.peers.size());
  }

  Status run(Deadline deadline) {
    for (int round = 0; round < kRounds; ++round)
      while (!has_ended(round)) {
        if (!sentences_.empty()) return failure(hepErrorNetwork);
        if (deadline.expired()) return missed(round, deadline);
        work(round);
      }
    const Deadline linger = deadline.or_in(kLingerMs);
    while (!is_delivered(kRounds - 1) && !linger.expired()) work(kRounds - 1);
    return Status();
  }

 private:
  // What has become of the greetings between two NICs, by round.
  struct Pair {
    std::array<bool, kRounds> sent{}, delivered{}, heard{};
  };

  template <typename Check>
  bool all(Check check) const {
    for (size_t nic = 0; nic < pairs_.size(); ++nic)
      for (size_t other = 0; other < pairs_[nic].size(); ++other)
        if (static_cast<int>(other) != domain_ && !check(pairs_[nic][other])) return false;
    return true;
  }

  // The greetings of the last round are not waited for: those who take them may be gone.
  bool has_ended(int round) const {
    const bool last = round == kRounds - 1;
    return all([&](const Pair& pair) {
      return pair.heard[round] && (last ? pair.sent[round] : pair.delivered[round]);
    });
  }
  bool is_delivered(int round) const {
    return all([round](const Pair& pair) { return pair.delivered[round]; });
  }

  void work(int round) {
    bool worked = false;
    for (size_t nic = 0; nic < nics_.size(); ++nic) {
      for (size_t other = 0; other < pairs_[nic].size(); ++other)
        if (static_cast<int>(other) != domain_ && !pairs_[nic][other].sent[round])
          send(nic, other, round);
      worked |= hear(nic);
    }
    if (!worked) std::this_thread::sleep_for(kPause);
  }

  void send(size_t nic, size_t other, int round) {
    const Immediate hello{WriteKind::kHello, static_cast<uint32_t>(nic),
                          static_cast<uint32_t>(domain_), static_cast<uint32_t>(round)};
    const auto tag = static_cast<uint32_t>(other) * kTagsOfAPeer + kHelloTag + round;
    int code = 0;
    const auto outcome =
        nics_[nic]->write({static_cast<int>(other), 0, 0, 0, hello.pack(), tag}, &code);
    if (outcome == Transport::Outcome::kBusy) return;
    pairs_[nic][other].sent[round] = true;
    if (outcome == Transport::Outcome::kFailed) say("cannot write to", nic, other, code);
  }

  bool hear(size_t nic) {
    std::array<NetworkEvent, 64> events;
    const int count = nics_[nic]->poll(events.data(), static_cast<int>(events.size()));
    for (int i = 0; i < count; ++i) take(nic, events[i]);
    return count > 0;
  }

  void take(size_t nic, const NetworkEvent& event) {
    const size_t other = event.tag / kTagsOfAPeer;
    switch (event.kind) {
      case NetworkEvent::Kind::kCompleted:
        pairs_[nic][other].delivered[event.tag % kTagsOfAPeer - kHelloTag] = true;
        return;
      case NetworkEvent::Kind::kFailed: return say("cannot write to", nic, other, event.code);
      case NetworkEvent::Kind::kArrived: return note(nic, Immediate::unpack(event.immediate));
      case NetworkEvent::Kind::kBroken:
        sentences_.push_back(names_.own[nic] + ": " + nics_[nic]->text_of(event.code));
        return;
    }
  }

  void note(size_t nic, const Immediate& hello) {
    if (hello.kind == WriteKind::kHello && hello.lane == nic && hello.number < kRounds &&
        hello.domain < pairs_[nic].size())
      pairs_[nic][hello.domain].heard[hello.number] = true;
  }

  void say(const char* what, size_t nic, size_t other, int code) {
    const std::string why = code == 0 ? "" : ": " + nics_[nic]->text_of(code);
    sentences_.push_back(names_.own[nic] + " " + what + " " + names_.peers[other][nic] + why);
  }

  // A rank that was told of a failure elsewhere does not know whom to blame.
  Status missed(int round, Deadline deadline) {
    for (size_t nic = 0; nic < pairs_.size(); ++nic)
      for (size_t other = 0; other < pairs_[nic].size(); ++other) {
        const Pair& pair = pairs_[nic][other];
        if (static_cast<int>(other) == domain_) continue;
        if (!pair.delivered[round]) say("does not reach", nic, other, 0);
        if (!pair.heard[round]) say("hears nothing of", nic, other, 0);
      }
    return failure(deadline.left_ms() == 0 ? hepErrorNetwork : hepErrorTimeout);
  }

  Status failure(hepResult_t result) const {
    std::string text;
    for (size_t i = 0; i < std::min(sentences_.size(), kMaxSentences); ++i)
      text += (i == 0 ? "" : "; ") + sentences_[i];
    if (sentences_.size() > kMaxSentences)
      text += "; and " + std::to_string(sentences_.size() - kMaxSentences) + " more";
    return Status(result, text);
  }

  const std::vector<Transport*>& nics_;
  const int domain_;
  const GreetingNames& names_;
  std::vector<std::vector<Pair>> pairs_;  // [nics][domains]
  std::vector<std::string> sentences_;    // what has failed
};

}  // namespace

Status greet(const std::vector<Transport*>& nics, int domain, const GreetingNames& names,
             Deadline deadline) {
  return Greeting(nics, domain, names).run(deadline);
}

}  // namespace hep
