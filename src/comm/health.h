// SPDX-License-Identifier: Apache-2.0
// Health knows of this rank's failure and of its peers'. It ends the backend's waits when a peer
// cannot answer any more, tells the peers when this rank fails, and says who is to blame.
#pragma once

#include <hybridep.h>

#include <atomic>
#include <condition_variable>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/status.h"
#include "base/thread_annotations.h"
#include "network/network.h"
#include "peers/member.h"
#include "protocol/topology.h"

namespace hep {

// Thread-safe.
class Health final : public PeerListener, public ProxyListener {
 public:
  // `network` is NULL with one domain; its proxy runs while peers are heard.
  Health(int rank, const Topology& topology, Backend& backend, PeerMember& member,
         Network* network);
  ~Health() override;

  // From now on neither peers nor the network are heard: this rank leaves.
  void stop_listening() noexcept;

  // From now on this rank hears its peers and tells them. `looks_around` is set if waits can fail
  // without a call of the backend.
  Status start(bool looks_around);

  // Returns the error of the first failed wait or of an abort, if any. By then the peers have been
  // told.
  Status check() HEP_EXCLUDES(mutex_);

  // Returns the same as a record. It names the rank that began the failure, not one that only
  // waited for that rank.
  hepFailure_t failure() const HEP_EXCLUDES(mutex_);

  // Ends every wait of this rank, and tells the peers.
  void abort() HEP_EXCLUDES(mutex_);

  // Ends every wait of this rank and tells the peers, because something other than a wait has
  // failed. `missing_rank` is to blame; -1 is nobody.
  void fail(hepResult_t result, int missing_rank, const std::string& cause) HEP_EXCLUDES(mutex_);

  void network_failed(int rank, const std::string& cause) override HEP_EXCLUDES(mutex_);

  void peer_left(int rank) noexcept override HEP_EXCLUDES(mutex_);
  void peer_lost(int rank) override HEP_EXCLUDES(mutex_);
  void peer_failed(const PeerFailure& failure) override HEP_EXCLUDES(mutex_);
  bool poll_local_failure(PeerFailure* own) override HEP_EXCLUDES(mutex_);

 private:
  // All that this rank knows of a peer.
  struct Peer {
    bool gone = false, failed = false;
    int missing_rank = -1;  // the rank that it named when it failed
    std::string sentence;   // its own words
  };

  void settle(int gone) noexcept;
  void look_at_device() HEP_EXCLUDES(mutex_);
  void stop(hepResult_t result, int missing_rank, const std::string& cause,
            const PeerFailure& own = {}) HEP_EXCLUDES(mutex_);
  PeerFailure to_tell() const HEP_EXCLUDES(mutex_);
  int root_cause(const hepFailure_t& failure) const HEP_REQUIRES(mutex_);
  int end_of_waits(int awaited) const HEP_REQUIRES(mutex_);
  int end_of_chain(int rank, int awaited) const HEP_REQUIRES(mutex_);
  Status sentence_of(const hepFailure_t& failure) const HEP_EXCLUDES(mutex_);
  void await_explanation() HEP_EXCLUDES(mutex_);

  const int rank_;
  const Topology topology_;
  Backend& backend_;
  PeerMember& member_;
  Network* const network_;
  std::atomic<bool> leaves_{false};

  // A thread that holds several mutexes takes them in this order: the table of groups, a group,
  // this one, the backend's. Therefore no function reports to the group under this mutex.
  mutable Mutex mutex_;
  std::condition_variable heard_;
  std::vector<Peer> peers_ HEP_GUARDED_BY(mutex_);
  bool awaited_explanation_ HEP_GUARDED_BY(mutex_) = false;

  // The reason that ended this rank's waits from outside, if it came before any of them failed.
  std::string cause_ HEP_GUARDED_BY(mutex_);
  int reported_rank_ HEP_GUARDED_BY(mutex_) = -1;

  // The same for the peers, if it began here. Its result is hepSuccess if a peer has told it.
  PeerFailure own_failure_ HEP_GUARDED_BY(mutex_){};
};

}  // namespace hep
