// SPDX-License-Identifier: Apache-2.0
#include "peers/group.h"

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>

#include "base/blocked_signals.h"

namespace hep {
namespace {

PeerMessage make_message(PeerEvent event, int rank) {
  PeerMessage message{};
  message.magic = kMessageMagic;
  message.event = event;
  message.rank = rank;
  message.missing_rank = -1;
  return message;
}

PeerMessage make_message(const PeerFailure& failure) {
  PeerMessage message = make_message(PeerEvent::kFailed, failure.rank);
  message.result = failure.result;
  message.missing_rank = failure.missing_rank;
  message.length = static_cast<uint32_t>(std::min(failure.sentence.size(), sizeof message.content));
  std::memcpy(message.content, failure.sentence.data(), message.length);
  return message;
}

std::string sentence_of(const PeerMessage& failure) {
  return std::string(failure.content, failure.length);
}

}  // namespace

PeerGroup::PeerGroup(const std::vector<uint64_t>& processes, int rank)
    : peers_(processes.size()), gather_(processes.size()) {
  for (size_t r = 0; r < processes.size(); ++r) {
    const auto first = std::find(processes.begin(), processes.begin() + r, processes[r]);
    const auto first_rank = static_cast<int>(first - processes.begin());
    if (first_rank == static_cast<int>(r)) first_ranks_.push_back(first_rank);
    process_of_.push_back(static_cast<int>(
        std::find(first_ranks_.begin(), first_ranks_.end(), first_rank) - first_ranks_.begin()));
  }
  own_process_ = process_of_[rank];
  inboxes_.resize(first_ranks_.size());
}

PeerGroup::~PeerGroup() {
  if (process_ != ::getpid()) {  // in a forked child, which has neither the thread nor a say
    new std::thread(std::move(thread_));  // which cannot be joined
    return;
  }
  {
    const Lock lock(mutex_);
    ending_ = true;
  }
  if (thread_.joinable()) {
    ::eventfd_write(wake_.get(), 1);
    thread_.join();
  }
  // A forked child may hold the connections, too, and must not keep them alive. Bytes that came and
  // were not read would turn the end into a reset, which could overtake the farewell.
  for (Descriptor& link : links_.sockets()) {
    if (!link.valid()) continue;
    ::shutdown(link.get(), SHUT_RDWR);
    char rest[4096];
    while (::recv(link.get(), rest, sizeof rest, MSG_DONTWAIT) > 0) continue;
  }
}

Status PeerGroup::open() { return is_alone() ? Status() : links_.open(); }

Status PeerGroup::connect(const std::vector<LinkAddress>& addresses, Deadline deadline) {
  if (is_alone()) return Status();
  std::vector<LinkAddress> of_processes;
  std::vector<std::string> names;
  for (const int rank : first_ranks_) {
    of_processes.push_back(addresses[rank]);
    names.push_back("rank " + std::to_string(rank));
  }
  HEP_TRY(links_.connect(of_processes, own_process_, names, deadline));
  return start_thread();
}

Status PeerGroup::start_thread() {
  const Lock lock(mutex_);
  if (thread_.joinable()) return Status();
  wake_ = Descriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_.valid()) return system_error("no eventfd for the thread that watches the peers");
  polled_.resize(1 + links_.sockets().size());
  const BlockedSignals blocked;
  try {
    thread_ = std::thread([this] { run(); });
  } catch (const std::system_error& failure) {
    return error(hepErrorSystem, "no thread could be started that watches the peers: %s",
                 failure.what());
  }
  return Status();
}

// -------------------------------------------------------------------------------- what ranks tell

void PeerGroup::poll_local_failure() {
  for (const Peer& peer : peers_) {
    PeerFailure failure;
    if (!peer.looks_around || peer.failed || !peer.listener->poll_local_failure(&failure)) continue;
    announce(make_message(failure));
    deliver();  // to the next rank, too, before it is asked
  }
}

void PeerGroup::report(const PeerFailure& failure) {
  if (process_ != ::getpid()) return;
  const Lock lock(mutex_);
  announce(make_message(failure));
  try {
    deliver();
  } catch (const std::bad_alloc&) {
    if (!thread_.joinable()) throw;  // the caller comes again
    ::eventfd_write(wake_.get(), 1);
  }
}

void PeerGroup::leave(int rank) noexcept {
  if (process_ != ::getpid()) return;
  const Lock lock(mutex_);
  announce(make_message(PeerEvent::kLeft, rank));
  try {
    deliver();
  } catch (const std::bad_alloc&) {
    if (thread_.joinable()) ::eventfd_write(wake_.get(), 1);
  }
}

// The listeners of this process learn it in deliver().
void PeerGroup::announce(const PeerMessage& message) {
  const Peer& self = peers_[message.rank];
  if (!self.started || self.left || (message.event == PeerEvent::kFailed && self.failed)) return;
  record(message);
  send(message);
}

// Keeps that a rank has left or failed.
void PeerGroup::record(const PeerMessage& message) {
  Peer& peer = peers_[message.rank];
  if (message.event == PeerEvent::kLeft) {
    peer.left = true;
  } else {
    peer.failed = true;
    peer.failure = message;
  }
  changed_.notify_all();
}

// Sends to all other processes. The few messages that a rank may have under way at once fit into
// the socket's buffer, whether or not the other end reads. A link that took a part of one is
// closed: whoever reads on would take the rest for other messages.
void PeerGroup::send(const PeerMessage& message) {
  for (const Descriptor& link : links_.sockets()) {
    if (!link.valid()) continue;
    const ssize_t sent = ::send(link.get(), &message, sizeof message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0 && static_cast<size_t>(sent) < sizeof message) ::shutdown(link.get(), SHUT_RDWR);
  }
}

// Tells every listener what it has not been told of the other ranks.
void PeerGroup::deliver() {
  for (size_t rank = 0; rank < peers_.size(); ++rank) {
    Peer& self = peers_[rank];
    for (size_t other = 0; self.listener != nullptr && other < peers_.size(); ++other)
      if (other != rank)
        tell(*self.listener, static_cast<int>(other), peers_[other], self.told[other]);
  }
}

void PeerGroup::tell(PeerListener& listener, int rank, const Peer& peer, Told& told) {
  if (peer.failed && !told.failed) {
    const PeerMessage& failure = peer.failure;
    listener.peer_failed({rank, static_cast<hepResult_t>(failure.result), failure.missing_rank,
                          sentence_of(failure)});
    told.failed = true;
  }
  if (peer.left && !told.left) {
    listener.peer_left(rank);
    told.left = true;
  }
  if (peer.lost && !told.lost) {
    listener.peer_lost(rank);
    told.lost = true;
  }
}

void PeerGroup::subscribe(int rank, PeerListener& listener, bool looks_around) {
  const Lock lock(mutex_);
  Peer& self = peers_[rank];
  self.told.assign(peers_.size(), {});
  self.started = true;
  self.listener = &listener;
  self.looks_around = looks_around;
  deliver();
  if (looks_around && wake_.valid()) ::eventfd_write(wake_.get(), 1);
}

void PeerGroup::unsubscribe(int rank) noexcept {
  const Lock lock(mutex_);
  peers_[rank].listener = nullptr;
  peers_[rank].looks_around = false;
}

// ------------------------------------------------------------------------------------- all-gather

Status PeerGroup::all_gather(int rank, const void* send, void* receive, size_t bytes,
                             Deadline deadline, int* missing) {
  *missing = -1;
  if (bytes > kMaxGatherBytes)
    return error(hepErrorInternal, "%zu bytes do not fit in a contribution", bytes);
  PeerMessage message = make_message(PeerEvent::kContributed, rank);
  message.length = static_cast<uint32_t>(bytes);
  std::memcpy(message.content, send, bytes);

  Lock lock(mutex_);
  message.round = gather_.begin(rank);
  contribute(message);
  this->send(message);
  while ((*missing = gather_.take(message.round, bytes, receive)) >= 0) {
    HEP_TRY(reason_to_give_up(message.round, bytes, missing));
    if (deadline.expired())
      return error(hepErrorTimeout, "timed out waiting for rank %d", *missing);
    changed_.wait_for(lock.native(), std::chrono::milliseconds(deadline.remaining_ms()));
  }
  return Status();
}

void PeerGroup::contribute(const PeerMessage& message) {
  // Only the last contribution wakes those who wait.
  if (gather_.add(message.rank, message.round, message.content, message.length))
    changed_.notify_all();
}

// Names one of the missing ranks that does not come any more, if there is one.
Status PeerGroup::reason_to_give_up(uint64_t round, size_t bytes, int* missing) const {
  for (const Peer& peer : peers_)
    if (peer.failed)
      return Status(static_cast<hepResult_t>(peer.failure.result), sentence_of(peer.failure));
  for (size_t rank = 0; rank < peers_.size(); ++rank) {
    const Peer& peer = peers_[rank];
    if (gather_.has(rank, round, bytes) || (!peer.lost && !peer.left)) continue;
    *missing = static_cast<int>(rank);
    return peer.lost ? error(hepErrorPeerLost, "the process of rank %zu is gone", rank)
                     : error(hepErrorPeerLost, "rank %zu has left", rank);
  }
  return Status();
}

// ------------------------------------------------------------------------------ fork and exit

void PeerGroup::forget_in_child() {
  if (!thread_.joinable()) return;  // the links are not complete
  for (Descriptor& link : links_.sockets()) link.reset();
}

void PeerGroup::leave_at_exit() noexcept {
  const int num_ranks = static_cast<int>(process_of_.size());
  for (int rank = 0; rank < num_ranks; ++rank) leave(rank);
  for (int rank = 0; rank < num_ranks; ++rank) unsubscribe(rank);
}

}  // namespace hep
