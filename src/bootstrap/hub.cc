// SPDX-License-Identifier: Apache-2.0
#include "bootstrap/hub.h"

#include <poll.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/sentence.h"
#include "bootstrap/bootstrap.h"
#include "bootstrap/connection.h"
#include "config/ranks.h"
#include "net/doorway.h"
#include "net/frames.h"
#include "net/handshake.h"
#include "net/listener.h"
#include "protocol/shape.h"

namespace hep {
namespace {

// Twice the ranks that can come at once.
constexpr size_t kMaxStrangers = 2 * kMaxRanks;

// A rank whose connection broke before it knew that it has a seat comes again. Its seat is kept for
// it so long: for several attempts to connect, and short enough that the others learn within a
// second of a rank that has died.
constexpr int kReturnMs = 500;

Status read_failure(const std::vector<char>& payload) {
  wire::Failure head;
  std::memcpy(&head, payload.data(), sizeof head);
  return Status(failure_of(head.result), {payload.begin() + sizeof head, payload.end()});
}

// Holds what a rank has brought to the all-gather that is under way.
struct Contribution {
  wire::Gather gather;
  Deadline deadline;
  std::vector<char> data;
};

// A peer has proved the secret. One that cannot have a seat is told why, and closed at the
// deadline.
struct Peer {
  Connection connection;
  Deadline deadline;
  int rank = -1;  // whose seat it has; -1: nobody's
  std::optional<Contribution> contribution;

  Peer(Descriptor socket, std::string name)
      : connection(std::move(socket), std::move(name)), deadline(Deadline::after_ms(kProofMs)) {}
  bool has_seat() const { return rank >= 0; }
};

// A rank's seat is given away once. Until the first exchange, the rank that took it may take it
// again.
struct Seat {
  Peer* member = nullptr;
  std::string name;  // the address of who took the seat; empty: nobody did yet
  uint32_t visit = 0;
  bool contributed = false;           // so the rank knows that the seat is its own
  std::optional<Deadline> return_by;  // the connection broke, and the rank may come again
  bool taken() const { return !name.empty() && !return_by; }
};

class Hub final : private Doorway::Keeper {
 public:
  Hub(Listener listener, const SipKey& secret, int timeout_ms)
      : listener_(std::move(listener)),
        secret_(secret),
        first_arrival_(Deadline::after_ms(timeout_ms)),
        linger_(Deadline::after_ms(0)) {}

  ~Hub() override { listener_.close(); }

  void run() {
    while (!finished()) {
      wait_and_serve();
      expire();
      while (remove_one_closed()) continue;
    }
  }

 private:
  bool finished() const;
  int milliseconds_to_wait() const;
  void wait_and_serve();
  bool greet(Doorway::Stranger& stranger) override;
  bool hear(Doorway::Stranger& stranger) override;
  void admit(Doorway::Stranger stranger);
  void serve(Peer& peer);
  Status take_seat(Peer& peer, const wire::Join& join);
  void contribute(Peer& peer, const std::vector<char>& payload);
  Status check_contribution(const Peer& peer, const wire::Gather& gather, size_t bytes) const;
  void relay();
  void expire();
  bool remove_one_closed();
  void miss(int rank);
  void fail(Status failure);

  bool all_seats_taken() const;
  const Peer* first_waiting() const;
  std::string missing_ranks() const;

  Listener listener_;
  Doorway doorway_{listener_.socket, *this, kMaxStrangers};
  const SipKey secret_;
  const Deadline first_arrival_;              // by when somebody must have joined
  Deadline linger_;                           // the latest by which a rank wants to have joined
  std::vector<std::unique_ptr<Peer>> peers_;  // oldest first
  std::vector<Seat> seats_;                   // [num_ranks]; empty until the first rank joins
  int first_rank_ = -1;                       // which rank that was
  bool exchanged_ = false;                    // so no rank comes again
  Status failure_;                            // the first one; there is no return from it
};

bool Hub::all_seats_taken() const {
  return !seats_.empty() &&
         std::all_of(seats_.begin(), seats_.end(), [](const Seat& seat) { return seat.taken(); });
}

bool Hub::finished() const {
  if (!peers_.empty()) return false;
  if (seats_.empty()) return first_arrival_.expired();
  // After a failure, the hub stays as long as the others would have waited for late ranks, and
  // tells those what it was.
  return all_seats_taken() || linger_.expired();
}

int Hub::milliseconds_to_wait() const {
  int least = doorway_.remaining_ms();
  const auto consider = [&least](const Deadline& deadline) {
    least = std::min(least, deadline.remaining_ms());
  };
  if (seats_.empty()) consider(first_arrival_);
  for (const auto& peer : peers_) {
    if (!peer->has_seat()) consider(peer->deadline);
    if (peer->contribution) consider(peer->contribution->deadline);
  }
  for (const Seat& seat : seats_)
    if (seat.return_by) consider(*seat.return_by);
  if (!seats_.empty() && (listener_.socket.valid() || peers_.empty())) consider(linger_);
  return least;
}

void Hub::wait_and_serve() {
  std::vector<pollfd> entries;
  for (const auto& peer : peers_)
    entries.push_back({peer->connection.socket(), peer->connection.events(), 0});
  doorway_.watch(&entries);
  ::poll(entries.data(), entries.size(), milliseconds_to_wait());

  const size_t polled = peers_.size();
  for (size_t i = 0; i < polled; ++i) {
    if (entries[i].revents & POLLOUT) peers_[i]->connection.flush();
    if (entries[i].revents & ~POLLOUT) serve(*peers_[i]);
  }
  // Strangers never end the hub: the doorway tries again to accept what it could not.
  (void)doorway_.serve(&entries[polled]);
  if (!exchanged_ && (failure_.ok() || !all_seats_taken())) return;
  listener_.close();
  doorway_.clear();
}

bool Hub::greet(Doorway::Stranger& stranger) {
  return stranger.verifier.challenge(stranger.socket.get());
}

bool Hub::hear(Doorway::Stranger& stranger) {
  const Verifier::Verdict verdict = stranger.verifier.read(stranger.socket.get(), secret_);
  if (verdict == Verifier::Verdict::kProved) admit(std::move(stranger));
  return verdict != Verifier::Verdict::kPending;
}

void Hub::admit(Doorway::Stranger stranger) {
  const wire::Join& join = stranger.verifier.join();
  if (exchanged_ || !check_rank(join.rank, join.num_ranks).ok()) return;
  // A rank that is gone already has its seat all the same, so that the others learn of its end.
  (void)stranger.verifier.welcome(stranger.socket.get(), secret_);
  peers_.push_back(std::make_unique<Peer>(std::move(stranger.socket), stranger.address.text()));
  Peer& peer = *peers_.back();
  if (const Status seated = take_seat(peer, join); !seated.ok()) {
    fail(seated);
    peer.connection.send(make_failure_frame(seated));
  } else if (!failure_.ok()) {
    peer.connection.send(make_failure_frame(failure_));
  }
}

void Hub::serve(Peer& peer) {
  Connection& connection = peer.connection;
  connection.receive();
  if (!peer.has_seat()) return connection.discard_input();
  constexpr size_t kHead = sizeof(wire::Gather);
  std::vector<char> payload;
  for (;;) {
    if (connection.next_is(wire::FrameType::kFailure)) {
      if (!connection.next_frame(wire::FrameType::kFailure, sizeof(wire::Failure),
                                 sizeof(wire::Failure) + wire::kMaxTextBytes, &payload))
        return;
      fail(read_failure(payload));
    } else {
      if (!connection.next_frame(wire::FrameType::kGather, kHead, kHead + Bootstrap::kMaxBytes,
                                 &payload))
        return;
      contribute(peer, payload);
    }
  }
}

Status Hub::take_seat(Peer& peer, const wire::Join& join) {
  const int num_ranks = static_cast<int>(seats_.size());
  if (num_ranks == 0) {
    seats_.resize(join.num_ranks);
    first_rank_ = join.rank;
  } else if (join.num_ranks != num_ranks) {
    return error(hepErrorMismatch,
                 "rank %d was told that there are %d ranks, rank %d that there are %d", join.rank,
                 join.num_ranks, first_rank_, num_ranks);
  }
  const Deadline deadline = Deadline::after_ms(join.remaining_ms);
  if (deadline.remaining_ms() > linger_.remaining_ms()) linger_ = deadline;
  Seat& seat = seats_[join.rank];
  const bool returns = seat.visit == join.visit && !seat.contributed;
  if (!seat.name.empty() && !returns)
    return error(hepErrorMismatch, "rank %d came twice, from %s and from %s", join.rank,
                 seat.name.c_str(), peer.connection.name().c_str());
  if (seat.member != nullptr) {
    seat.member->rank = -1;
    seat.member->connection.close();
  }
  seat.member = &peer;
  seat.name = peer.connection.name();
  seat.visit = join.visit;
  seat.return_by.reset();
  peer.rank = join.rank;
  return Status();
}

void Hub::contribute(Peer& peer, const std::vector<char>& payload) {
  if (!failure_.ok()) return;  // the rank has been told already
  if (peer.contribution) return peer.connection.close();
  wire::Gather gather;
  std::memcpy(&gather, payload.data(), sizeof gather);
  gather.phase[sizeof gather.phase - 1] = '\0';
  const size_t bytes = payload.size() - sizeof gather;
  if (const Status fits = check_contribution(peer, gather, bytes); !fits.ok()) return fail(fits);

  const Deadline deadline = Deadline::after_ms(gather.remaining_ms);
  seats_[peer.rank].contributed = true;
  peer.contribution =
      Contribution{gather, deadline, {payload.begin() + sizeof gather, payload.end()}};
  const bool complete = std::all_of(seats_.begin(), seats_.end(), [](const Seat& seat) {
    return seat.member && seat.member->contribution;
  });
  if (complete) relay();
}

Status Hub::check_contribution(const Peer& peer, const wire::Gather& gather, size_t bytes) const {
  for (size_t rank = 0; rank < seats_.size(); ++rank) {
    if (seats_[rank].taken() && !seats_[rank].member)
      return error(hepErrorPeerLost, "phase '%s': rank %zu has left", gather.phase, rank);
  }
  const Peer* other = first_waiting();
  if (!other) return Status();
  const Contribution& theirs = *other->contribution;
  if (std::strcmp(theirs.gather.phase, gather.phase) == 0 && theirs.data.size() == bytes &&
      theirs.gather.sequence == gather.sequence)
    return Status();
  return error(hepErrorMismatch,
               "rank %d is in phase '%s' (step %u, %zu bytes), rank %d in phase '%s' (step %u, %zu "
               "bytes)",
               peer.rank, gather.phase, gather.sequence, bytes, other->rank, theirs.gather.phase,
               theirs.gather.sequence, theirs.data.size());
}

void Hub::relay() {
  std::vector<char> all;
  for (const Seat& seat : seats_) {
    const std::vector<char>& data = seat.member->contribution->data;
    all.insert(all.end(), data.begin(), data.end());
    seat.member->contribution.reset();
  }
  exchanged_ = true;
  const Frame frame = make_frame(wire::FrameType::kResult, all.data(), all.size());
  for (const Seat& seat : seats_) seat.member->connection.send(frame);
}

void Hub::expire() {
  // A rank that still comes is past every deadline that is known. A member that hangs must not keep
  // the port open.
  if (!seats_.empty() && linger_.expired()) listener_.close();
  for (Seat& seat : seats_) {
    if (!seat.return_by || !seat.return_by->expired()) continue;
    seat.return_by.reset();
    miss(static_cast<int>(&seat - seats_.data()));
  }
  for (const auto& peer : peers_) {
    if (!peer->has_seat()) {
      if (peer->deadline.expired()) peer->connection.close();
    } else if (peer->contribution && peer->contribution->deadline.expired()) {
      const wire::Gather gather = peer->contribution->gather;
      fail(error(hepErrorTimeout, "phase '%s': rank %d waited %u ms for %s", gather.phase,
                 peer->rank, gather.remaining_ms, missing_ranks().c_str()));
    }
  }
}

// Removes one peer whose connection is closed. Returns false if there is none. It tells the others,
// whose connections can close on that.
bool Hub::remove_one_closed() {
  const auto found = std::find_if(peers_.begin(), peers_.end(),
                                  [](const auto& peer) { return peer->connection.closed(); });
  if (found == peers_.end()) return false;
  const std::unique_ptr<Peer> gone = std::move(*found);
  peers_.erase(found);
  if (!gone->has_seat()) return true;
  Seat& seat = seats_[gone->rank];
  seat.member = nullptr;
  if (seat.contributed || !failure_.ok())
    miss(gone->rank);
  else
    seat.return_by = Deadline::after_ms(kReturnMs);
  return true;
}

// Tells the others that a rank does not come any more. They may wait for it elsewhere. After the
// last all-gather, when the ranks leave one after the other, they do not listen any more.
void Hub::miss(int rank) {
  const Peer* waiting = first_waiting();
  if (waiting || !exchanged_)
    fail(error(hepErrorPeerLost, "phase '%s': rank %d is gone",
               waiting ? waiting->contribution->gather.phase : "join", rank));
  else
    fail(error(hepErrorPeerLost, "rank %d is gone", rank));
}

void Hub::fail(Status failure) {
  if (!failure_.ok()) return;
  failure_ = std::move(failure);
  const Frame frame = make_failure_frame(failure_);
  for (const Seat& seat : seats_) {
    if (!seat.member) continue;
    seat.member->contribution.reset();
    seat.member->connection.send(frame);
  }
}

const Peer* Hub::first_waiting() const {
  for (const Seat& seat : seats_)
    if (seat.member && seat.member->contribution) return seat.member;
  return nullptr;
}

std::string Hub::missing_ranks() const {
  std::vector<int> missing;
  for (size_t rank = 0; rank < seats_.size(); ++rank)
    if (!seats_[rank].member || !seats_[rank].member->contribution)
      missing.push_back(static_cast<int>(rank));
  return rank_list(missing);
}

}  // namespace

void run_hub(Listener listener, const SipKey& secret, int timeout_ms) {
  Hub(std::move(listener), secret, timeout_ms).run();
}

}  // namespace hep
