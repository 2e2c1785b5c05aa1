// SPDX-License-Identifier: Apache-2.0
#include "bootstrap/hub.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <string>
#include <vector>

#include "bootstrap/bootstrap.h"
#include "bootstrap/connection.h"
#include "bootstrap/unique_id.h"
#include "identity.h"
#include "layout.h"
#include "net/frames.h"
#include "ranks.h"

namespace hep {
namespace {

// Connections that have not proved themselves; past it, the oldest makes room for the newest.
constexpr int kMaxStrangers = 2 * kMaxRanks;

// Accepted in one turn. Small against kMaxStrangers, so that a rank amid a flood of strangers has
// several turns to prove itself in before it is the oldest.
constexpr int kAcceptBatch = 16;

// After an accept that failed, for want of descriptors for example, and nobody could make room.
constexpr int kAcceptPauseMs = 50;

Frame make_failure_frame(const Status& failure) {
  const wire::Failure head{static_cast<uint32_t>(failure.result())};
  std::vector<char> payload(sizeof head);
  std::memcpy(payload.data(), &head, sizeof head);
  const std::string text = failure.message().substr(0, wire::kMaxTextBytes);
  payload.insert(payload.end(), text.begin(), text.end());
  return make_frame(wire::FrameType::kFailure, payload.data(), payload.size());
}

std::string peer_name(const sockaddr_storage& storage) {
  if (storage.ss_family == AF_INET) {
    sockaddr_in v4;
    std::memcpy(&v4, &storage, sizeof v4);
    return address_text(v4_mapped(v4.sin_addr), ntohs(v4.sin_port));
  }
  sockaddr_in6 v6;
  std::memcpy(&v6, &storage, sizeof v6);
  return address_text(v6.sin6_addr, ntohs(v6.sin6_port));
}

// What a rank has brought to the all-gather that is under way.
struct Contribution {
  wire::Gather gather;
  Deadline deadline;
  std::vector<char> data;
};

struct Peer {
  enum class State {
    kStranger,  // has proved nothing yet; until `deadline`
    kMember,    // holds a seat
    kRefused    // proved the secret but cannot have a seat; has been told why; until `deadline`
  };

  Connection connection;
  Deadline deadline;
  wire::Nonce nonce{};
  State state = State::kStranger;
  int rank = -1;
  std::optional<Contribution> contribution;

  Peer(Descriptor socket, std::string name)
      : connection(std::move(socket), std::move(name)),
        deadline(Deadline::after_ms(wire::kProofMs)) {}
};

// A rank's place. It is given away once.
struct Seat {
  Peer* member = nullptr;
  std::string name;  // the address that took the seat; empty: nobody did yet
  bool taken() const { return !name.empty(); }
};

class Hub {
 public:
  Hub(Descriptor listener, const SipKey& secret, int timeout_ms)
      : listener_(std::move(listener)),
        secret_(secret),
        first_arrival_(Deadline::after_ms(timeout_ms)),
        linger_(Deadline::after_ms(0)),
        accept_again_(Deadline::after_ms(0)) {}

  ~Hub() { close_listener(); }

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
  void accept_strangers();
  bool evict_oldest_stranger();
  void serve(Peer& peer);
  void admit(Peer& peer, const wire::Join& join);
  Status take_seat(Peer& peer, const wire::Join& join);
  void contribute(Peer& peer, const std::vector<char>& payload);
  Status check_contribution(const Peer& peer, const wire::Gather& gather, size_t bytes) const;
  void relay();
  void expire();
  bool remove_one_closed();
  void fail(Status failure);
  void close_listener();

  bool all_seats_taken() const;
  const Peer* first_waiting() const;
  std::string missing_ranks() const;

  Descriptor listener_;
  const SipKey secret_;
  const Deadline first_arrival_;  // by when somebody must have joined
  Deadline linger_;               // the latest by which a rank wants to have joined
  Deadline accept_again_;
  std::vector<std::unique_ptr<Peer>> peers_;  // oldest first
  std::vector<Seat> seats_;                   // [num_ranks]; empty until the first rank joins
  int first_rank_ = -1;                       // which rank that was
  Status failure_;                            // the first one; there is no return from it
};

bool Hub::all_seats_taken() const {
  return !seats_.empty() &&
         std::all_of(seats_.begin(), seats_.end(), [](const Seat& seat) { return seat.taken(); });
}

bool Hub::finished() const {
  for (const auto& peer : peers_)
    if (peer->state != Peer::State::kStranger) return false;
  if (seats_.empty()) return first_arrival_.expired();
  // After a failure, ranks that come late learn what it was, for as long as the others would have
  // waited for them.
  return all_seats_taken() || linger_.expired();
}

int Hub::milliseconds_to_wait() const {
  int least = seats_.empty() ? first_arrival_.remaining_ms() : INT32_MAX;
  const auto consider = [&least](const Deadline& deadline) {
    least = std::min(least, deadline.remaining_ms());
  };
  bool anybody = false;
  for (const auto& peer : peers_) {
    if (peer->state != Peer::State::kMember) consider(peer->deadline);
    if (peer->contribution) consider(peer->contribution->deadline);
    anybody |= peer->state != Peer::State::kStranger;
  }
  if (!seats_.empty() && (listener_.valid() || !anybody)) consider(linger_);
  if (!accept_again_.expired()) consider(accept_again_);
  return least;
}

void Hub::wait_and_serve() {
  std::vector<pollfd> entries;
  for (const auto& peer : peers_)
    entries.push_back({peer->connection.socket(), peer->connection.events(), 0});
  // poll passes over negative descriptors.
  entries.push_back({accept_again_.expired() ? listener_.get() : -1, POLLIN, 0});
  if (::poll(entries.data(), entries.size(), milliseconds_to_wait()) <= 0) return;

  const size_t polled = peers_.size();
  for (size_t i = 0; i < polled; ++i) {
    if (entries[i].revents & POLLOUT) peers_[i]->connection.flush();
    if (entries[i].revents & ~POLLOUT) serve(*peers_[i]);
  }
  if (entries[polled].revents && listener_.valid()) accept_strangers();
}

void Hub::accept_strangers() {
  for (int i = 0; i < kAcceptBatch; ++i) {
    sockaddr_storage storage{};
    socklen_t length = sizeof storage;
    Descriptor socket(::accept4(listener_.get(), reinterpret_cast<sockaddr*>(&storage), &length,
                                SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!socket.valid()) {
      if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return;
      if (!evict_oldest_stranger()) accept_again_ = Deadline::after_ms(kAcceptPauseMs);
      return;
    }
    wire::set_socket_options(socket.get());
    auto peer = std::make_unique<Peer>(std::move(socket), peer_name(storage));
    if (!random_bytes(peer->nonce.data(), peer->nonce.size()).ok()) continue;
    const wire::Challenge challenge{peer->nonce};
    peer->connection.send(make_frame(wire::FrameType::kChallenge, &challenge, sizeof challenge));
    peers_.push_back(std::move(peer));
    const auto strangers = std::count_if(peers_.begin(), peers_.end(), [](const auto& other) {
      return other->state == Peer::State::kStranger && !other->connection.closed();
    });
    if (strangers > kMaxStrangers) evict_oldest_stranger();
  }
}

// False if there is none.
bool Hub::evict_oldest_stranger() {
  for (const auto& peer : peers_) {
    if (peer->state != Peer::State::kStranger || peer->connection.closed()) continue;
    peer->connection.close();
    return true;
  }
  return false;
}

void Hub::serve(Peer& peer) {
  Connection& connection = peer.connection;
  connection.receive();
  std::vector<char> payload;
  if (peer.state == Peer::State::kStranger) {
    wire::Join join;
    if (!connection.next_frame(wire::FrameType::kJoin, sizeof join, sizeof join, &payload)) return;
    std::memcpy(&join, payload.data(), sizeof join);
    admit(peer, join);
  }
  if (peer.state == Peer::State::kRefused) connection.discard_input();
  constexpr size_t kHead = sizeof(wire::Gather);
  while (peer.state == Peer::State::kMember &&
         connection.next_frame(wire::FrameType::kGather, kHead, kHead + Bootstrap::kMaxBytes,
                               &payload))
    contribute(peer, payload);
}

void Hub::admit(Peer& peer, const wire::Join& join) {
  const uint64_t expected = wire::make_proof(secret_, wire::Side::kRank, peer.nonce, join);
  const bool possible = check_rank(join.rank, join.num_ranks).ok();
  if (!wire::equal_proofs(join.proof, expected) || !possible) return peer.connection.close();

  const wire::Welcome welcome{wire::make_proof(secret_, wire::Side::kHub, peer.nonce, join)};
  peer.connection.send(make_frame(wire::FrameType::kWelcome, &welcome, sizeof welcome));
  if (const Status seated = take_seat(peer, join); !seated.ok()) {
    fail(seated);
    peer.state = Peer::State::kRefused;
    peer.deadline = Deadline::after_ms(wire::kProofMs);
    return peer.connection.send(make_failure_frame(seated));
  }
  if (!failure_.ok()) peer.connection.send(make_failure_frame(failure_));
  if (!all_seats_taken()) return;
  close_listener();
  for (const auto& other : peers_)
    if (other->state == Peer::State::kStranger) other->connection.close();
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
  if (seat.taken())
    return error(hepErrorMismatch, "rank %d came twice, from %s and from %s", join.rank,
                 seat.name.c_str(), peer.connection.name().c_str());
  seat.member = &peer;
  seat.name = peer.connection.name();
  peer.state = Peer::State::kMember;
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
  const Frame frame = make_frame(wire::FrameType::kResult, all.data(), all.size());
  for (const Seat& seat : seats_) seat.member->connection.send(frame);
}

void Hub::expire() {
  // Whoever may still come is past every deadline that is known. A member that hangs must not keep
  // the port open.
  if (!seats_.empty() && linger_.expired()) close_listener();
  for (const auto& peer : peers_) {
    if (peer->state != Peer::State::kMember) {
      if (peer->deadline.expired()) peer->connection.close();
    } else if (peer->contribution && peer->contribution->deadline.expired()) {
      const wire::Gather gather = peer->contribution->gather;
      fail(error(hepErrorTimeout, "phase '%s': rank %d waited %u ms for %s", gather.phase,
                 peer->rank, gather.remaining_ms, missing_ranks().c_str()));
    }
  }
}

// Removes one peer whose connection is closed; false if there is none. What it tells to others can
// close their connections.
bool Hub::remove_one_closed() {
  const auto found = std::find_if(peers_.begin(), peers_.end(),
                                  [](const auto& peer) { return peer->connection.closed(); });
  if (found == peers_.end()) return false;
  const std::unique_ptr<Peer> gone = std::move(*found);
  peers_.erase(found);
  if (gone->state != Peer::State::kMember) return true;
  seats_[gone->rank].member = nullptr;
  const Peer* waiting = first_waiting();
  // Once all have joined, ranks may leave at different times, as long as nobody waits for them.
  if (waiting || !all_seats_taken())
    fail(error(hepErrorPeerLost, "phase '%s': rank %d is gone",
               waiting ? waiting->contribution->gather.phase : "join", gone->rank));
  return true;
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

void Hub::close_listener() {
  // A forked child may hold the socket too, and must not keep it listening.
  if (listener_.valid()) ::shutdown(listener_.get(), SHUT_RDWR);
  listener_.reset();
}

const Peer* Hub::first_waiting() const {
  for (const Seat& seat : seats_)
    if (seat.member && seat.member->contribution) return seat.member;
  return nullptr;
}

// For example "rank 2" or "ranks 2, 5".
std::string Hub::missing_ranks() const {
  std::string list;
  int count = 0;
  for (size_t rank = 0; rank < seats_.size(); ++rank) {
    if (seats_[rank].member && seats_[rank].member->contribution) continue;
    list += (count++ ? ", " : " ") + std::to_string(rank);
  }
  return (count == 1 ? "rank" : "ranks") + list;
}

}  // namespace

void run_hub(Descriptor listener, const SipKey& secret, int timeout_ms) {
  Hub(std::move(listener), secret, timeout_ms).run();
}

}  // namespace hep
