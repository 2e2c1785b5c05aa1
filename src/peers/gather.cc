// SPDX-License-Identifier: Apache-2.0
// The all-gather of a PeerGroup.
#include <algorithm>
#include <chrono>
#include <cstring>

#include "peers/group.h"
#include "peers/message.h"

namespace hep {

Status PeerGroup::all_gather(int rank, const void* send, void* receive, size_t bytes,
                             Deadline deadline, int* missing) {
  *missing = -1;
  if (bytes > kMaxGatherBytes)
    return error(hepErrorInternal, "%zu bytes do not fit in a contribution", bytes);
  PeerMessage message{};
  message.magic = kMessageMagic;
  message.event = PeerEvent::kContributed;
  message.rank = rank;
  message.missing_rank = -1;
  message.length = static_cast<uint32_t>(bytes);
  std::memcpy(message.content, send, bytes);

  std::unique_lock<std::mutex> lock(mutex_);
  message.round = ++peers_[rank].rounds;
  contribute(message);
  this->send(message);
  while (!take_contributions(message.round, bytes, receive, missing)) {
    HEP_TRY(reason_to_give_up(message.round, bytes, missing));
    if (deadline.expired())
      return error(hepErrorTimeout, "timed out waiting for rank %d", *missing);
    changed_.wait_for(lock, std::chrono::milliseconds(deadline.remaining_ms()));
  }
  *missing = -1;
  return Status();
}

void PeerGroup::contribute(const PeerMessage& message) {
  Contribution& contribution = peers_[message.rank].contributions[message.round & 1];
  contribution.round = message.round;
  contribution.bytes.assign(message.content, message.content + message.length);
  // Only the last wakes those who wait.
  if (std::all_of(peers_.begin(), peers_.end(), [&message](const Peer& peer) {
        return peer.contributions[message.round & 1].round == message.round;
      }))
    changed_.notify_all();
}

// One of another size, which a sound peer does not send, is none.
bool PeerGroup::has_contributed(size_t rank, uint64_t round, size_t bytes) const {
  const Contribution& contribution = peers_[rank].contributions[round & 1];
  return contribution.round == round && contribution.bytes.size() == bytes;
}

// False, with the first that is missing, as long as not all are there.
bool PeerGroup::take_contributions(uint64_t round, size_t bytes, void* receive,
                                   int* missing) const {
  for (size_t rank = 0; rank < peers_.size(); ++rank) {
    *missing = static_cast<int>(rank);
    if (!has_contributed(rank, round, bytes)) return false;
    std::memcpy(static_cast<char*>(receive) + rank * bytes,
                peers_[rank].contributions[round & 1].bytes.data(), bytes);
  }
  return true;
}

// Of several ranks that are missing, one that will not come any more.
Status PeerGroup::reason_to_give_up(uint64_t round, size_t bytes, int* missing) const {
  for (const Peer& peer : peers_)
    if (peer.failed) return Status(peer.failure.result, peer.failure.sentence);
  for (size_t rank = 0; rank < peers_.size(); ++rank) {
    const Peer& peer = peers_[rank];
    if (has_contributed(rank, round, bytes) || (!peer.lost && !peer.left)) continue;
    *missing = static_cast<int>(rank);
    return peer.lost ? error(hepErrorPeerLost, "the process of rank %zu is gone", rank)
                     : error(hepErrorPeerLost, "rank %zu has left", rank);
  }
  return Status();
}

}  // namespace hep
