// SPDX-License-Identifier: Apache-2.0
#include "memory/peer_memory.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/identity.h"
#include "base/sentence.h"
#include "memory/local_allocations.h"

namespace hep {
namespace {

// Collects the errors of several peers. Peers that fail alike are told together.
class PeerFailures {
 public:
  explicit PeerFailures(int rank) : rank_(rank) {}

  void cannot_map(int peer, const Status& status) {
    if (status.ok()) return;
    if (result_ == hepSuccess) result_ = status.result();
    for (auto& [reason, peers] : unmapped_)
      if (reason == status.message()) return peers.push_back(peer);
    unmapped_.push_back({status.message(), {peer}});
  }

  void add(const Status& status) {
    if (status.ok()) return;
    if (result_ == hepSuccess) result_ = status.result();
    others_ += "; " + status.message();
  }

  Status status() const {
    if (result_ == hepSuccess) return Status();
    std::string text;
    for (const auto& [reason, peers] : unmapped_)
      text += "; rank " + std::to_string(rank_) + " cannot map the memory of " + rank_list(peers) +
              ": " + reason;
    return Status(result_, (text + others_).substr(2));
  }

 private:
  const int rank_;
  hepResult_t result_ = hepSuccess;
  std::vector<std::pair<std::string, std::vector<int>>> unmapped_;
  std::string others_;
};

bool needs_descriptor(const WindowHandle& handle) {
  return handle.bytes > 0 && passes_descriptors(handle.kind);
}

// `descriptor` is -1 for a peer of this process and for kinds that pass none.
Status map_peer(int device, const WindowHandle& handle, int descriptor,
                std::unique_ptr<Mapping>* out) {
  const MemoryKindOperations* operations = nullptr;
  HEP_TRY(find_memory_kind(handle.kind, &operations));
  std::shared_ptr<Allocation> local;
  if (handle.process == process_identity()) {
    local = LocalAllocations::instance().find(handle.window);
    if (!local) return error(hepErrorPeerLost, "it no longer exists");
    descriptor = local->descriptor();
  }
  const Status mapped = operations->map(device, {handle, descriptor, local}, out);
  return mapped.result() == hepErrorCuda ? Status(hepErrorUnreachable, mapped.message()) : mapped;
}

}  // namespace

Status map_peers(int device, int rank, const std::vector<WindowHandle>& handles,
                 DescriptorChannel* channel, Deadline deadline,
                 std::vector<std::unique_ptr<Mapping>>* mappings) {
  PeerFailures failures(rank);
  mappings->resize(handles.size());
  const auto map = [&](int peer, int descriptor) {
    failures.cannot_map(peer, map_peer(device, handles[peer], descriptor, &(*mappings)[peer]));
  };
  std::vector<int> others;  // of other processes
  std::vector<DescriptorAddress> addresses;
  for (int peer = 0; peer < static_cast<int>(handles.size()); ++peer) {
    const WindowHandle& handle = handles[peer];
    addresses.push_back(handle.descriptor);
    if (peer == rank || !is_shared(handle)) continue;
    const bool local = handle.process == process_identity();
    if (!local) others.push_back(peer);
    if (handle.bytes > 0 && (local || !needs_descriptor(handle))) map(peer, -1);
  }
  // Either all take part or none, also those that have no descriptor to give.
  if (!others.empty() && std::any_of(handles.begin(), handles.end(), needs_descriptor)) {
    const auto receive = [&](int peer, int descriptor) {
      if (needs_descriptor(handles[peer])) map(peer, descriptor);
    };
    failures.add(channel->exchange(rank, others, addresses, receive, deadline));
  }
  return failures.status();
}

}  // namespace hep
