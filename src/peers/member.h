// SPDX-License-Identifier: Apache-2.0
// A member is one rank's handle on the group of its communicator.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/deadline.h"
#include "base/status.h"
#include "peers/group.h"

namespace hep {

// One thread at a time may use it, except report().
class PeerMember {
 public:
  // `communicator` is a number that its ranks share and no other communicator has; `processes` [R]
  // is the same number for ranks of the same process.
  static Status open(uint64_t communicator, const std::vector<uint64_t>& processes, int rank,
                     std::unique_ptr<PeerMember>* out);

  // Leaves. Tells the peers, unless the rank never started, and never waits for them.
  ~PeerMember();

  LinkAddress address() const;

  // Collective; `addresses` [R] are those of all ranks.
  Status connect(const std::vector<LinkAddress>& addresses, Deadline deadline);

  // From now on the listener hears what happens, and at once what has happened already. With
  // `looks_around`, the group asks it several times a second whether this rank has failed.
  Status start(PeerListener* listener, bool looks_around);

  // After this the listener is not called any more.
  void stop() noexcept;

  // Does what PeerGroup::all_gather does.
  Status all_gather(const void* send, void* receive, size_t bytes, Deadline deadline, int* missing);

  // Tells the peers of this rank's failure. The first failure counts.
  void report(const PeerFailure& failure);

 private:
  PeerMember(std::shared_ptr<PeerGroup> group, int rank);

  std::shared_ptr<PeerGroup> group_;
  const int rank_;
};

}  // namespace hep
