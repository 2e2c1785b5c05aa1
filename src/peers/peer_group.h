// SPDX-License-Identifier: Apache-2.0
// What the ranks of a communicator tell each other beside the data: that they leave, or that they
// have failed; and what nobody tells, that a process is gone. The ranks of a process share one group,
// with one connection to each other process and one thread that listens.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "deadline.h"
#include "peers/links.h"
#include "status.h"

namespace hep {

// What a rank tells of its failure.
struct PeerFailure {
  int rank;
  hepResult_t result;
  int missing_rank;  // -1: none
  std::string sentence;
};

// A rank's ear. Called from any thread, one call at a time; must not call the group.
class PeerListener {
 public:
  virtual ~PeerListener() = default;
  virtual void peer_left(int rank) = 0;  // it will signal nothing more; nothing is wrong
  virtual void peer_lost(int rank) = 0;  // its process is gone, without a word
  virtual void peer_failed(const PeerFailure& failure) = 0;

  // Called from time to time where the group was asked to: true and the failure if this rank itself
  // has failed.
  virtual bool look_around(PeerFailure* own) = 0;
};

class PeerGroup;

// One rank's place in its group. Used by one thread at a time, report() excepted.
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

  // Tells the peers of this rank's failure. The first one counts.
  void report(const PeerFailure& failure);

 private:
  PeerMember(std::shared_ptr<PeerGroup> group, int rank);

  std::shared_ptr<PeerGroup> group_;
  const int rank_;
};

}  // namespace hep
