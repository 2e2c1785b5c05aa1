// SPDX-License-Identifier: Apache-2.0
#include "net/doorway.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <utility>

namespace hep {
namespace {

// At most this many connections are accepted in one turn. The number is small against those of
// strangers, so that a rank amid a flood has several turns to prove itself before it is the oldest.
constexpr int kAcceptBatch = 16;

// The doorway pauses this long after an accept that failed where nobody could make room.
constexpr int kAcceptPauseMs = 50;

// Where no descriptor is free, accept4 fails even if nobody waits.
bool somebody_waits(const Descriptor& listener) {
  pollfd queue{listener.get(), POLLIN, 0};
  return ::poll(&queue, 1, 0) > 0;
}

}  // namespace

Doorway::Doorway(const Descriptor& listener, Keeper& keeper, size_t max_strangers)
    : listener_(listener), keeper_(keeper), max_strangers_(max_strangers) {}

void Doorway::watch(std::vector<pollfd>* entries) const {
  // poll passes over negative descriptors.
  entries->push_back({accept_again_.expired() ? listener_.get() : -1, POLLIN, 0});
  for (const Stranger& stranger : strangers_)
    entries->push_back({stranger.socket.get(), POLLIN, 0});
}

int Doorway::remaining_ms() const {
  int least = accept_again_.expired() ? INT32_MAX : accept_again_.remaining_ms();
  // The oldest is the first whose time is over.
  if (!strangers_.empty()) least = std::min(least, strangers_.front().deadline.remaining_ms());
  return least;
}

Status Doorway::serve(const pollfd* entries) {
  hear(entries + 1);
  expire();
  return entries[0].revents != 0 && listener_.valid() ? accept() : Status();
}

void Doorway::hear(const pollfd* entries) {
  size_t kept = 0;
  for (size_t i = 0; i < strangers_.size(); ++i)
    if (entries[i].revents == 0 || !keeper_.hear(strangers_[i]))
      std::swap(strangers_[kept++], strangers_[i]);
  strangers_.erase(strangers_.begin() + kept, strangers_.end());
}

void Doorway::expire() {
  while (!strangers_.empty() && strangers_.front().deadline.expired()) dismiss_oldest();
}

Status Doorway::accept() {
  for (int i = 0; i < kAcceptBatch && somebody_waits(listener_); ++i) {
    SocketAddress address;
    Descriptor socket(
        ::accept4(listener_.get(), address.get(), &address.length, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!socket.valid()) {
      if (errno == EAGAIN) return Status();
      if (errno == EINTR || errno == ECONNABORTED) continue;
      const Status failure = system_error("a connection cannot be accepted");
      if (!strangers_.empty()) {
        dismiss_oldest();  // the newest has its turn in the next call
        return Status();
      }
      accept_again_ = Deadline::after_ms(kAcceptPauseMs);
      return failure;
    }
    Stranger stranger{std::move(socket), address, Deadline::after_ms(kProofMs), {}};
    if (!keeper_.greet(stranger)) continue;
    if (strangers_.size() == max_strangers_) dismiss_oldest();
    strangers_.push_back(std::move(stranger));
  }
  return Status();
}

void Doorway::dismiss_oldest() {
  keeper_.dismiss(strangers_.front());
  strangers_.pop_front();
}

}  // namespace hep
