// SPDX-License-Identifier: Apache-2.0
// What one rank knows of its own and its peers' failures: it makes its backend's waits end when a
// peer cannot answer any more, tells the peers when it fails itself, and says who is to blame.
#pragma once

#include <hybridep.h>

#include <condition_variable>
#include <mutex>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/status.h"
#include "peers/member.h"

namespace hep {

// Thread-safe.
class Health final : public PeerListener {
 public:
  Health(int rank, int num_ranks, Backend& backend, PeerMember& member);
  ~Health() override;

  // From now on peers are heard and told. `looks_around`: waits fail without a call of the backend.
  Status start(bool looks_around);

  // The error of the first failed wait or of an abort, if any, in a sentence; the peers have then been
  // told.
  Status check();

  // The same as a record, which names the rank that began it, not one that waited for it itself.
  hepFailure_t failure() const;

  // Ends every wait of this rank, and tells the peers.
  void abort();

  // Ends every wait of this rank, and tells the peers, because something else than an operation has
  // failed. `missing_rank` is who is to blame, or -1.
  void fail(hepResult_t result, int missing_rank, const std::string& cause);

  void peer_left(int rank) override;
  void peer_lost(int rank) override;
  void peer_failed(const PeerFailure& failure) override;
  bool look_around(PeerFailure* own) override;

 private:
  // What is known of a peer.
  struct Peer {
    bool gone = false, failed = false;
    int missing_rank = -1;  // whom it named when it failed
    std::string sentence;   // what it said then
  };

  void look_at_device();
  void stop(hepResult_t result, int missing_rank, const std::string& cause,
            const PeerFailure& begun = {});
  PeerFailure to_tell(const hepFailure_t& failure) const;
  int culprit(const hepFailure_t& failure) const;
  int end_of_chain(int rank) const;
  Status sentence_of(const hepFailure_t& failure) const;
  void await_explanation(int rank);

  const int rank_;
  Backend& backend_;
  PeerMember& member_;

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable heard_;
  std::vector<Peer> peers_;
  bool awaited_explanation_ = false;

  // What ended this rank's waits from outside, if that came before any of them failed.
  std::string cause_;
  int told_rank_ = -1;

  // The same for the peers, where it began here and was not told by one; else with result hepSuccess.
  PeerFailure begun_{};
};

}  // namespace hep
