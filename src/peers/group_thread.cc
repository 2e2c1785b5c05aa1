// SPDX-License-Identifier: Apache-2.0
// The thread of a group: it waits for messages and for the ends of links.
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <new>

#include "base/result.h"
#include "peers/group.h"

namespace hep {
namespace {

// The thread pauses this long between two looks around, and before a second try without memory.
constexpr int kLookAroundMs = 50;

}  // namespace

void PeerGroup::run() noexcept {
  for (bool goes_on = true; goes_on;) {
    try {
      goes_on = watch();
    } catch (const std::bad_alloc&) {
      ::poll(nullptr, 0, kLookAroundMs);  // until there may be memory again
    }
  }
}

// Waits for the next event. Returns false when the group ends. Reading allocates nothing, so that
// no message is lost when memory runs out; only the listeners may allocate.
bool PeerGroup::watch() {
  {
    const Lock lock(mutex_);
    if (ending_) return false;
    deliver();
  }
  const int ready = poll_links();
  const Lock lock(mutex_);
  if (ready > 0 && polled_[0].revents != 0) {
    eventfd_t ignored;
    ::eventfd_read(wake_.get(), &ignored);
  }
  for (size_t i = 1; ready > 0 && i < polled_.size(); ++i)
    if (polled_[i].revents != 0) read(static_cast<int>(i) - 1);
  deliver();
  poll_local_failure();
  return true;
}

int PeerGroup::poll_links() {
  bool looks_around = false;
  {
    const Lock lock(mutex_);
    polled_[0] = {wake_.get(), POLLIN, 0};
    // poll passes over negative descriptors.
    std::transform(links_.sockets().begin(), links_.sockets().end(), polled_.begin() + 1,
                   [](const Descriptor& link) {
                     return pollfd{link.get(), POLLIN, 0};
                   });
    looks_around = std::any_of(peers_.begin(), peers_.end(),
                               [](const Peer& peer) { return peer.looks_around; });
  }
  return ::poll(polled_.data(), polled_.size(), looks_around ? kLookAroundMs : -1);
}

// Takes what has come over a link, message by message.
void PeerGroup::read(int process) {
  const Descriptor& link = links_.sockets()[process];
  Inbox& inbox = inboxes_[process];
  while (link.valid()) {
    const ssize_t length = ::recv(link.get(), reinterpret_cast<char*>(&inbox.message) + inbox.bytes,
                                  sizeof inbox.message - inbox.bytes, MSG_DONTWAIT);
    if (length < 0 && errno == EINTR) continue;
    if (length < 0 && errno == EAGAIN) return;
    if (length <= 0) return lose(process);
    inbox.bytes += length;
    if (inbox.bytes < sizeof inbox.message) continue;
    inbox.bytes = 0;
    take(process, inbox.message);
  }
}

bool PeerGroup::is_sound(int process, const PeerMessage& message) const {
  const int num_ranks = static_cast<int>(peers_.size());
  return message.magic == kMessageMagic && message.rank >= 0 && message.rank < num_ranks &&
         process_of_[message.rank] == process && message.event >= PeerEvent::kLeft &&
         message.event <= PeerEvent::kContributed && is_result(message.result) &&
         (message.result != hepSuccess || message.event != PeerEvent::kFailed) &&
         message.missing_rank >= -1 && message.missing_rank < num_ranks &&
         message.length <= sizeof message.content;
}

void PeerGroup::take(int process, const PeerMessage& message) {
  if (!is_sound(process, message)) return lose(process);
  if (message.event == PeerEvent::kContributed)
    contribute(message);
  else
    record(message);
}

// Marks the ranks of a process that is gone as lost, except those that have left.
void PeerGroup::lose(int process) {
  links_.sockets()[process].reset();
  for (size_t rank = 0; rank < peers_.size(); ++rank)
    if (process_of_[rank] == process && !peers_[rank].left) peers_[rank].lost = true;
  changed_.notify_all();
}

}  // namespace hep
