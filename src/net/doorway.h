// SPDX-License-Identifier: Apache-2.0
// The doorway is the way in at a listening socket. Everybody on the network can connect, so a
// connection is a stranger until it has proved that it belongs here. Strangers hold up nobody:
// their number is bounded, each has a deadline, and where there is no room for another, the oldest
// goes.
#pragma once

#include <poll.h>

#include <cstddef>
#include <deque>
#include <vector>

#include "base/deadline.h"
#include "base/descriptor.h"
#include "base/status.h"
#include "net/address.h"
#include "net/handshake.h"

namespace hep {

class Doorway {
 public:
  struct Stranger {
    Descriptor socket;
    SocketAddress address;
    Deadline deadline;
    Verifier verifier;  // of use to keepers that ask for a secret
  };

  // A keeper decides about strangers. It must not call the doorway.
  class Keeper {
   public:
    virtual ~Keeper() = default;

    // Returns whether a new connection may stay.
    virtual bool greet(Stranger& stranger) = 0;

    // Reads what a stranger has sent. Returns false as long as more has to come. Where it returns
    // true, the keeper has taken the socket, or the stranger is shut out.
    virtual bool hear(Stranger& stranger) = 0;

    // The doorway calls it before it shuts out a stranger that is late or has to make room.
    virtual void dismiss(Stranger&) {}
  };

  // Does not own the listening socket. When that is closed, nobody comes any more.
  Doorway(const Descriptor& listener, Keeper& keeper, size_t max_strangers);

  // Adds what poll() has to watch. remaining_ms() is how long poll() may wait at most.
  void watch(std::vector<pollfd>* entries) const;
  int remaining_ms() const;

  // Takes what poll() has found in the `entries` that watch() added. Returns hepErrorSystem if a
  // connection cannot be accepted and no stranger is left to make room, and then pauses for a
  // moment.
  Status serve(const pollfd* entries);

  // Shuts all strangers out.
  void clear() { strangers_.clear(); }

 private:
  void hear(const pollfd* entries);
  void expire();
  Status accept();
  void dismiss_oldest();

  const Descriptor& listener_;
  Keeper& keeper_;
  const size_t max_strangers_;
  std::deque<Stranger> strangers_;  // oldest first
  Deadline accept_again_ = Deadline::after_ms(0);
};

}  // namespace hep
