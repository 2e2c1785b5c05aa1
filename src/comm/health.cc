// SPDX-License-Identifier: Apache-2.0
#include "comm/health.h"

#include <chrono>
#include <utility>

#include "protocol/failure.h"

namespace hep {
namespace {

// A rank that is said to be missing has this long to tell whom it waits for itself. It is a little
// more than the time in which failures on a device are found.
constexpr std::chrono::milliseconds kExplanation{250};

std::string name(int rank) { return "rank " + std::to_string(rank); }

}  // namespace

Health::Health(int rank, const Topology& topology, Backend& backend, PeerMember& member,
               Network* network)
    : rank_(rank),
      topology_(topology),
      backend_(backend),
      member_(member),
      network_(network),
      peers_(topology.num_ranks) {}

Health::~Health() { stop_listening(); }

void Health::stop_listening() noexcept {
  leaves_.store(true);
  member_.stop();
}

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
  // The cause names the rank that its own rank waited for. Another rank may be the one that is
  // missing.
  const int missing = explained.missing_rank;
  if (explained.result == hepErrorTimeout && !cause_.empty() && missing >= 0 &&
      missing != reported_rank_)
    message += "; " + name(missing) + " is missing";
  return Status(status.result(), message);
}

// Waits once for the word of the rank that is missing: it may itself wait for another rank, and be
// about to tell.
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
  const int awaited = failure.missing_rank;
  failure.missing_rank = root_cause(failure);
  if (failure.missing_rank != awaited) failure.via_rank = -1;
  return failure;
}

// Returns the rank that is to blame. The backend's record names the rank that the wait was for, or
// nobody. That rank may have failed because of a third one, and this rank may have been told of it.
int Health::root_cause(const hepFailure_t& failure) const {
  const int awaited = failure.missing_rank;
  switch (failure.result) {
    case hepErrorTimeout: return end_of_waits(awaited);
    // The rank that differs, or whose call was wrong, is in the record, or this rank was told of
    // it.
    case hepErrorMismatch:
    case hepErrorInvalidUsage:
      return cause_.empty() || reported_rank_ < 0 ? awaited : reported_rank_;
    case hepErrorCuda: return reported_rank_ >= 0 ? reported_rank_ : awaited;
    default:
      return awaited < 0 || (reported_rank_ >= 0 && reported_rank_ != rank_) ? reported_rank_
                                                                             : awaited;
  }
}

// Returns the rank at the end of the chain of waits. The wait that expired first began the failure,
// and the peers reported it. From there the chain leads to a rank that waits for nobody. If it
// leads in a circle, this rank's own wait may lead out of it. Otherwise the ranks wait for each
// other, and any of them will do.
int Health::end_of_waits(int awaited) const {
  const int first = reported_rank_ >= 0 ? reported_rank_ : awaited;
  for (const int begin : {first, awaited}) {
    const int end = begin < 0 ? -1 : end_of_chain(begin, awaited);
    if (end >= 0) return end;
  }
  return awaited >= 0 ? awaited : first;
}

// Follows the chain of waits: from a rank that failed to the rank that it waited for, and so on.
// This rank waits for `awaited`, or for nobody. Returns -1 if the chain has no end.
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

// Stops this rank if its device is dead. Does not tell the peers; the caller does.
void Health::look_at_device() {
  const Status device = backend_.check_device();
  if (device.ok()) return;
  stop(device.result(), rank_, device.message(),
       {rank_, device.result(), rank_, name(rank_) + ": " + device.message()});
}

void Health::abort() {
  const PeerFailure own{rank_, hepErrorAborted, rank_,
                        name(rank_) + " has aborted the communicator"};
  stop(own.result, -1, "the communicator was aborted", own);
  member_.report(own);
}

void Health::fail(hepResult_t result, int missing_rank, const std::string& cause) {
  const PeerFailure own{rank_, result, missing_rank, name(rank_) + ": " + cause};
  stop(result, missing_rank, cause, own);
  member_.report(own);
}

void Health::stop(hepResult_t result, int missing_rank, const std::string& cause,
                  const PeerFailure& own) {
  // The copies come first, so that a call without memory for them changes nothing.
  std::string kept_cause = cause;
  PeerFailure kept_own = own;
  // One lock covers both: of two stops at the same time, one gives the cause and the result.
  const Lock lock(mutex_);
  if (cause_.empty() && backend_.failure().result == hepSuccess) {
    cause_ = std::move(kept_cause);
    reported_rank_ = missing_rank;
    own_failure_ = std::move(kept_own);
  }
  backend_.stop(result);
}

void Health::network_failed(int rank, const std::string& cause) {
  if (!leaves_.load()) fail(hepErrorNetwork, rank, cause);
}

// What a peer wrote before it went counts. Errors of writes to it, which it does not take any more,
// do not.
void Health::settle(int gone) noexcept {
  if (network_ == nullptr) return;
  const int domain = topology_.domain_of(gone);
  const bool is_rail_peer = topology_.number_of(gone) == topology_.number_of(rank_) &&
                            !topology_.share_domain(gone, rank_);
  if (is_rail_peer) network_->proxy().peer_gone(domain);
  network_->proxy().settle();
}

void Health::peer_left(int rank) noexcept {
  settle(rank);
  {
    const Lock lock(mutex_);
    peers_[rank].gone = true;
    heard_.notify_all();
  }
  backend_.peer_left(rank);
}

void Health::peer_lost(int rank) {
  settle(rank);
  {
    const Lock lock(mutex_);
    peers_[rank].gone = true;
    heard_.notify_all();
  }
  const std::string cause = "the process of " + name(rank) + " is gone";
  // The peers are told as well. They need not have lost it, because a connection can end although
  // its processes live.
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
