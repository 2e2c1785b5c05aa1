// SPDX-License-Identifier: Apache-2.0
#include "comm/health.h"

#include <chrono>
#include <utility>

#include "protocol/failure.h"

namespace hep {
namespace {

// For a rank that is accused to tell what it waits for itself: the time in which failures on a
// device are found, and some.
constexpr std::chrono::milliseconds kExplanation{250};

std::string name(int rank) { return "rank " + std::to_string(rank); }

}  // namespace

Health::Health(int rank, int num_ranks, Backend& backend, PeerMember& member)
    : rank_(rank), backend_(backend), member_(member), peers_(num_ranks) {}

Health::~Health() { member_.stop(); }

Status Health::start(bool looks_around) { return member_.start(this, looks_around); }

Status Health::check() {
  look_at_device();
  if (backend_.failure().result == hepSuccess) return Status();
  if (const PeerFailure interrupt = to_tell(); interrupt.result != hepSuccess)
    member_.report(interrupt);
  await_explanation();
  const hepFailure_t explained = failure();
  const Status status = sentence_of(explained);
  const Lock lock(mutex_);
  const bool waited = explained.operation != hepOperationNone;
  const int accused = waited ? explained.missing_rank : reported_rank_;
  std::string message = status.message();
  if (accused >= 0 && peers_[accused].failed && peers_[accused].sentence != cause_)
    message += "; " + peers_[accused].sentence;
  // The cause names whom its own rank waited for, who need not be the one that is missing.
  const int missing = explained.missing_rank;
  if (explained.result == hepErrorTimeout && !cause_.empty() && missing >= 0 &&
      missing != reported_rank_)
    message += "; " + name(missing) + " is missing";
  return Status(status.result(), message);
}

// The one who is missing may just be waiting for somebody else, and is about to tell. Once.
void Health::await_explanation() {
  const auto end = std::chrono::steady_clock::now() + kExplanation;
  for (;;) {
    const hepFailure_t known = failure();
    const int rank = known.missing_rank;
    if (known.result != hepErrorTimeout || rank < 0 || rank == rank_) return;
    Lock lock(mutex_);
    if (awaited_explanation_ || peers_[rank].failed || peers_[rank].gone) return;
    awaited_explanation_ = heard_.wait_until(lock.native(), end) == std::cv_status::timeout;
  }
}

bool Health::poll_local_failure(PeerFailure* own) {
  look_at_device();
  *own = to_tell();
  return own->result != hepSuccess;
}

// Returns the failure to announce to the peers, or hepSuccess if they have been told.
// A failure that began here comes first. It also ends waits of this rank, and those may be found
// earlier; the rank that such a wait waited for is not the one that is missing.
// For a timeout this rank names whom it waited for itself, never whom it was told of. Every rank
// can then follow the chain of waits to its end.
PeerFailure Health::to_tell() const {
  hepFailure_t failure = backend_.failure();
  if (failure.result == hepSuccess) return {};
  bool told = false;
  const bool first_hand = failure.result == hepErrorTimeout && failure.missing_rank >= 0;
  {
    const Lock lock(mutex_);
    if (own_failure_.result != hepSuccess || failure.operation == hepOperationNone)
      return own_failure_;
    told = !cause_.empty();
    if (!first_hand) failure.missing_rank = root_cause(failure);
  }
  const Status status = first_hand && told
                            ? failure_status(failure, "it waited for " + name(failure.missing_rank))
                            : sentence_of(failure);
  return {rank_, status.result(), failure.missing_rank, status.message()};
}

hepFailure_t Health::failure() const {
  hepFailure_t failure = backend_.failure();
  if (failure.result == hepSuccess) return failure;
  const Lock lock(mutex_);
  failure.missing_rank = root_cause(failure);
  return failure;
}

// The record of the backend names whom the wait was for, or nobody. That one may have failed as
// well, and so this rank may have been told of.
int Health::root_cause(const hepFailure_t& failure) const {
  const int awaited = failure.missing_rank;
  switch (failure.result) {
    case hepErrorTimeout: return end_of_waits(awaited);
    // Whom a rank differs from, or whose call was wrong, stands in its own record, or it was told.
    case hepErrorMismatch:
    case hepErrorInvalidUsage:
      return cause_.empty() || reported_rank_ < 0 ? awaited : reported_rank_;
    case hepErrorCuda: return reported_rank_ >= 0 ? reported_rank_ : awaited;
    default:
      return awaited < 0 || (reported_rank_ >= 0 && reported_rank_ != rank_) ? reported_rank_
                                                                             : awaited;
  }
}

// The wait that expired first began the failure, and the peers told of it. From there the chain of
// waits leads to a rank that waits for nobody. Where it leads in a circle, this rank's own wait may
// lead out of it. Else the ranks wait for each other, and one name is as good as any.
int Health::end_of_waits(int awaited) const {
  const int first = reported_rank_ >= 0 ? reported_rank_ : awaited;
  for (const int begin : {first, awaited}) {
    const int end = begin < 0 ? -1 : end_of_chain(begin, awaited);
    if (end >= 0) return end;
  }
  return awaited >= 0 ? awaited : first;
}

// Goes from a rank that failed because it waited for another to that one, and so on. This rank
// waits for `awaited`, or for nobody. Returns -1 where the chain has no end.
int Health::end_of_chain(int rank, int awaited) const {
  for (size_t step = 0; step < peers_.size(); ++step) {
    const Peer& peer = peers_[rank];
    int next = peer.failed && !peer.gone ? peer.missing_rank : -1;
    if (rank == rank_) next = awaited;
    if (next < 0 || next == rank) return rank;
    rank = next;
  }
  return -1;
}

Status Health::sentence_of(const hepFailure_t& failure) const {
  std::string cause;
  {
    const Lock lock(mutex_);
    cause = cause_;
    const int missing = failure.missing_rank;
    if (cause.empty() && failure.result == hepErrorPeerLost && missing >= 0)
      cause = name(missing) + (peers_[missing].gone ? " has left" : " is gone");
  }
  return failure_status(failure, cause);
}

// Does not tell the peers, for a caller that does.
void Health::look_at_device() {
  const Status device = backend_.check_device();
  if (device.ok()) return;
  stop(device.result(), rank_, device.message(),
       {rank_, device.result(), rank_, name(rank_) + ": " + device.message()});
}

void Health::abort() {
  const PeerFailure begun{rank_, hepErrorAborted, rank_,
                          name(rank_) + " has aborted the communicator"};
  stop(begun.result, -1, "the communicator was aborted", begun);
  member_.report(begun);
}

void Health::fail(hepResult_t result, int missing_rank, const std::string& cause) {
  const PeerFailure begun{rank_, result, missing_rank, name(rank_) + ": " + cause};
  stop(result, missing_rank, cause, begun);
  member_.report(begun);
}

void Health::stop(hepResult_t result, int missing_rank, const std::string& cause,
                  const PeerFailure& begun) {
  // What takes memory comes first, so that a call for which there is none changes nothing.
  std::string own_cause = cause;
  PeerFailure own_begun = begun;
  // In one step: of two stops at the same time, the one whose cause is told gives the result too.
  const Lock lock(mutex_);
  if (cause_.empty() && backend_.failure().result == hepSuccess) {
    cause_ = std::move(own_cause);
    reported_rank_ = missing_rank;
    own_failure_ = std::move(own_begun);
  }
  backend_.stop(result);
}

void Health::peer_left(int rank) noexcept {
  {
    const Lock lock(mutex_);
    peers_[rank].gone = true;
    heard_.notify_all();
  }
  backend_.peer_left(rank);
}

void Health::peer_lost(int rank) {
  {
    const Lock lock(mutex_);
    peers_[rank].gone = true;
    heard_.notify_all();
  }
  const std::string cause = "the process of " + name(rank) + " is gone";
  // For the peers as well, which need not have lost it: a connection may end where its processes do
  // not.
  stop(hepErrorPeerLost, rank, cause, {rank_, hepErrorPeerLost, rank, name(rank_) + ": " + cause});
}

void Health::peer_failed(const PeerFailure& failure) {
  {
    const Lock lock(mutex_);
    Peer& peer = peers_[failure.rank];
    peer.failed = true;
    peer.missing_rank = failure.missing_rank;
    peer.sentence = failure.sentence;
    heard_.notify_all();
  }
  stop(failure.result, failure.missing_rank, failure.sentence);
}

}  // namespace hep
