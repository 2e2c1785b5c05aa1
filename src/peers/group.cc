// SPDX-License-Identifier: Apache-2.0
#include "peers/group.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include "blocked_signals.h"
#include "peers/message.h"
#include "result.h"

namespace hep {
namespace {

// Between two looks around.
constexpr int kLookAroundMs = 50;

}  // namespace

PeerGroup::PeerGroup(const std::vector<uint64_t>& processes, int rank) : peers_(processes.size()) {
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
    const std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
  }
  if (thread_.joinable()) {
    ::eventfd_write(wake_.get(), 1);
    thread_.join();
  }
  // A forked child may hold the connections too, and must not keep them alive. What has come and was
  // not read must not turn the end into a reset, which could overtake the farewell.
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
  const std::lock_guard<std::mutex> lock(mutex_);
  if (thread_.joinable()) return Status();
  wake_ = Descriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_.valid()) return system_error("no eventfd for the thread that watches the peers");
  const BlockedSignals blocked;
  try {
    thread_ = std::thread([this] { run(); });
  } catch (const std::system_error& failure) {
    return error(hepErrorSystem, "no thread could be started that watches the peers: %s",
                 failure.what());
  }
  return Status();
}

// ------------------------------------------------------------------------------------- the thread

std::vector<pollfd> PeerGroup::descriptors_to_watch(bool* looks_around) {
  std::vector<pollfd> entries{{wake_.get(), POLLIN, 0}};
  // poll passes over negative descriptors.
  for (const Descriptor& link : links_.sockets()) entries.push_back({link.get(), POLLIN, 0});
  *looks_around =
      std::any_of(peers_.begin(), peers_.end(), [](const Peer& peer) { return peer.looks_around; });
  return entries;
}

void PeerGroup::run() {
  for (bool goes_on = true; goes_on;) {
    try {
      goes_on = watch();
    } catch (const std::bad_alloc&) {
      ::poll(nullptr, 0, kLookAroundMs);  // and again, when there may be memory
    }
  }
}

// Waits for the next event; false when the group ends.
bool PeerGroup::watch() {
  std::vector<pollfd> entries;
  bool looks_around = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (ending_) return false;
    entries = descriptors_to_watch(&looks_around);
  }
  const int ready = ::poll(entries.data(), entries.size(), looks_around ? kLookAroundMs : -1);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (ready > 0 && entries[0].revents != 0) {
    eventfd_t ignored;
    ::eventfd_read(wake_.get(), &ignored);
  }
  for (size_t i = 1; ready > 0 && i < entries.size(); ++i)
    if (entries[i].revents != 0) read(static_cast<int>(i) - 1);
  for (size_t rank = 0; rank < peers_.size(); ++rank) {
    const Peer& peer = peers_[rank];
    PeerFailure failure;
    if (peer.looks_around && !peer.failed && peer.listener->look_around(&failure))
      announce_locked(PeerEvent::kFailed, failure);
  }
  return true;
}

// Takes what has come over a link, message by message.
void PeerGroup::read(int process) {
  Descriptor& link = links_.sockets()[process];
  std::vector<char>& inbox = inboxes_[process];
  for (;;) {
    const size_t before = inbox.size();
    inbox.resize(sizeof(PeerMessage));
    const ssize_t length =
        ::recv(link.get(), inbox.data() + before, inbox.size() - before, MSG_DONTWAIT);
    inbox.resize(before + std::max<ssize_t>(length, 0));
    if (length < 0 && errno == EINTR) continue;
    if (length < 0 && errno == EAGAIN) return;
    if (length <= 0) return lose(process);
    if (inbox.size() < sizeof(PeerMessage)) continue;
    PeerMessage message;
    std::memcpy(&message, inbox.data(), sizeof message);
    inbox.clear();
    take(process, message);
    if (!link.valid()) return;
  }
}

void PeerGroup::take(int process, const PeerMessage& message) {
  const int num_ranks = static_cast<int>(peers_.size());
  const bool sound = message.magic == kMessageMagic && message.rank >= 0 &&
                     message.rank < num_ranks && process_of_[message.rank] == process &&
                     message.event >= PeerEvent::kLeft &&
                     message.event <= PeerEvent::kContributed && is_result(message.result) &&
                     (message.result != hepSuccess || message.event != PeerEvent::kFailed) &&
                     message.missing_rank >= -1 && message.missing_rank < num_ranks &&
                     message.length <= sizeof message.content;
  if (!sound) return lose(process);
  if (message.event == PeerEvent::kContributed) return contribute(message);
  apply(message.event, {message.rank, static_cast<hepResult_t>(message.result),
                        message.missing_rank, std::string(message.content, message.length)});
}

// A process is gone: those of its ranks that have not left are lost.
void PeerGroup::lose(int process) {
  links_.sockets()[process].reset();
  for (size_t rank = 0; rank < peers_.size(); ++rank) {
    Peer& peer = peers_[rank];
    if (process_of_[rank] != process || peer.left) continue;
    peer.lost = true;
    changed_.notify_all();
    for (const Peer& local : peers_)
      if (local.listener != nullptr) local.listener->peer_lost(static_cast<int>(rank));
  }
}

// -------------------------------------------------------------------------------- what ranks tell

void PeerGroup::apply(PeerEvent event, const PeerFailure& what) {
  Peer& peer = peers_[what.rank];
  if (event == PeerEvent::kLeft) {
    peer.left = true;
  } else {
    peer.failed = true;
    peer.failure = what;
  }
  changed_.notify_all();
  for (size_t rank = 0; rank < peers_.size(); ++rank) {
    PeerListener* const listener = peers_[rank].listener;
    if (listener == nullptr || static_cast<int>(rank) == what.rank) continue;
    if (event == PeerEvent::kLeft)
      listener->peer_left(what.rank);
    else
      listener->peer_failed(what);
  }
}

void PeerGroup::announce(PeerEvent event, const PeerFailure& what) {
  if (process_ != ::getpid()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  announce_locked(event, what);
}

void PeerGroup::announce_locked(PeerEvent event, const PeerFailure& what) {
  Peer& self = peers_[what.rank];
  if (!self.started || self.left || (event == PeerEvent::kFailed && self.failed)) return;
  apply(event, what);
  PeerMessage message{};
  message.magic = kMessageMagic;
  message.event = event;
  message.rank = what.rank;
  message.result = what.result;
  message.missing_rank = what.missing_rank;
  message.length = static_cast<uint32_t>(std::min(what.sentence.size(), sizeof message.content));
  std::memcpy(message.content, what.sentence.data(), message.length);
  send(message);
}

// To all other processes. The few messages that a rank may have under way at once fit into the socket's
// buffer, whether or not the other side reads.
void PeerGroup::send(const PeerMessage& message) {
  for (const Descriptor& link : links_.sockets())
    if (link.valid()) ::send(link.get(), &message, sizeof message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void PeerGroup::forget_in_child() {
  if (!thread_.joinable()) return;  // the links are not complete
  for (Descriptor& link : links_.sockets()) link.reset();
}

void PeerGroup::leave_at_exit() {
  if (process_ != ::getpid()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (size_t rank = 0; rank < peers_.size(); ++rank)
    announce_locked(PeerEvent::kLeft, {static_cast<int>(rank), hepSuccess, -1, ""});
  for (Peer& peer : peers_) {
    peer.listener = nullptr;
    peer.looks_around = false;
  }
}

void PeerGroup::tell(PeerListener& listener, int rank, const Peer& peer) {
  if (peer.failed) listener.peer_failed(peer.failure);
  if (peer.left) listener.peer_left(rank);
  if (peer.lost) listener.peer_lost(rank);
}

void PeerGroup::listen(int rank, PeerListener* listener, bool looks_around) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Peer& self = peers_[rank];
  self.listener = listener;
  self.looks_around = listener != nullptr && looks_around;
  if (listener == nullptr) return;
  self.started = true;
  for (size_t other = 0; other < peers_.size(); ++other)
    if (static_cast<int>(other) != rank) tell(*listener, static_cast<int>(other), peers_[other]);
  if (self.looks_around && wake_.valid()) ::eventfd_write(wake_.get(), 1);
}

}  // namespace hep
