// SPDX-License-Identifier: Apache-2.0
// One rank's place in the group of its communicator.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "deadline.h"
#include "peers/group.h"
#include "status.h"

namespace hep {

// Used by one thread at a time, report() excepted.
class PeerMember {
 public:
  // `communicator` is a number that its ranks share and no other communicator has; `processes` [R]
  // is the same number for ranks of the same process.
  static Status open(uint64_t communicator, const std::vector<uint64_t>& processes, int rank,
                     std::unique_ptr<PeerMember>* out);

  // Leaves: tells the peers, unless the rank never started. Never waits for them.
  ~PeerMember();

  LinkAddress address() const;

  // Collective; `addresses` [R] are those of all ranks.
  Status connect(const std::vector<LinkAddress>& addresses, Deadline deadline);

  // From now on the listener hears what happens, and at once what has happened already. With
  // `looks_around`, its own failures are looked for several times a second.
  Status start(PeerListener* listener, bool looks_around);

  // After this the listener is not called any more.
  void stop();

  // As PeerGroup::all_gather.
  Status all_gather(const void* send, void* receive, size_t bytes, Deadline deadline, int* missing);

  // Tells the peers of this rank's failure. The first one counts.
  void report(const PeerFailure& failure);

 private:
  PeerMember(std::shared_ptr<PeerGroup> group, int rank);

  std::shared_ptr<PeerGroup> group_;
  const int rank_;
};

}  // namespace hep
