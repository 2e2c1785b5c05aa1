// SPDX-License-Identifier: Apache-2.0
#include "peers/health.h"

#include "failure.h"

namespace hep {
namespace {

std::string name(int rank) { return "rank " + std::to_string(rank); }

}  // namespace

Health::Health(int rank, int num_ranks, Backend& backend, PeerMember& member)
    : rank_(rank), backend_(backend), member_(member), peers_(num_ranks) {}

Health::~Health() { member_.stop(); }

Status Health::start(bool looks_around) { return member_.start(this, looks_around); }

Status Health::check() {
  const hepFailure_t own = failure();
  const Status status = sentence_of(own);
  // Where no wait has failed here, the peers know what is to be known.
  if (own.operation != hepOperationNone)
    member_.report({rank_, status.result(), own.missing_rank, status.message()});
  return status;
}

bool Health::look_around(PeerFailure* own) {
  const hepFailure_t mine = failure();
  if (mine.operation == hepOperationNone) return false;
  const Status status = sentence_of(mine);
  *own = {rank_, status.result(), mine.missing_rank, status.message()};
  return true;
}

hepFailure_t Health::failure() const {
  hepFailure_t failure = backend_.failure();
  if (failure.result == hepErrorTimeout || failure.result == hepErrorPeerLost)
    failure.missing_rank = culprit_behind(failure.missing_rank);
  return failure;
}

// A rank that has failed while it waited for another itself is not the one to blame. Where that leads
// back to a rank already seen, the ranks wait for each other, and the first name is as good as any.
int Health::culprit_behind(int missing_rank) const {
  if (missing_rank < 0) return missing_rank;
  const std::lock_guard<std::mutex> lock(mutex_);
  int culprit = missing_rank;
  for (size_t step = 0; step < peers_.size(); ++step) {
    const Peer& peer = peers_[culprit];
    if (peer.gone || !peer.failed || peer.missing_rank < 0) return culprit;
    if (peer.missing_rank == rank_) return missing_rank;
    culprit = peer.missing_rank;
  }
  return missing_rank;
}

Status Health::sentence_of(const hepFailure_t& failure) const {
  std::string cause;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    cause = cause_;
    const int missing = failure.missing_rank;
    if (cause.empty() && failure.result == hepErrorPeerLost && missing >= 0)
      cause = name(missing) + (peers_[missing].gone ? " has left" : " is gone");
  }
  return failure_status(failure, cause);
}

void Health::abort() {
  stop(hepErrorAborted, -1, "the communicator was aborted");
  member_.report({rank_, hepErrorAborted, rank_, name(rank_) + " has aborted the communicator"});
}

void Health::stop(hepResult_t result, int missing_rank, const std::string& cause) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (cause_.empty() && backend_.failure().result == hepSuccess) cause_ = cause;
  }
  backend_.stop(result, missing_rank);
}

void Health::peer_left(int rank) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    peers_[rank].gone = true;
  }
  backend_.peer_left(rank);
}

void Health::peer_lost(int rank) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    peers_[rank].gone = true;
  }
  stop(hepErrorPeerLost, rank, "the process of " + name(rank) + " is gone");
}

void Health::peer_failed(const PeerFailure& failure) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    peers_[failure.rank].failed = true;
    peers_[failure.rank].missing_rank = failure.missing_rank;
  }
  stop(failure.result, failure.missing_rank, failure.sentence);
}

}  // namespace hep
