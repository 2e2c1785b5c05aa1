// SPDX-License-Identifier: Apache-2.0
#include "peers/member.h"

#include "peers/groups.h"

namespace hep {

Status PeerMember::open(uint64_t communicator, const std::vector<uint64_t>& processes, int rank,
                        std::unique_ptr<PeerMember>* out) {
  std::shared_ptr<PeerGroup> group = join_group(communicator, processes, rank);
  if (group->is_lowest(rank)) HEP_TRY(group->open());
  out->reset(new PeerMember(std::move(group), rank));
  return Status();
}

PeerMember::PeerMember(std::shared_ptr<PeerGroup> group, int rank)
    : group_(std::move(group)), rank_(rank) {}

PeerMember::~PeerMember() {
  stop();
  group_->leave(rank_);
}

LinkAddress PeerMember::address() const {
  return group_->is_lowest(rank_) ? group_->address() : LinkAddress{};
}

Status PeerMember::connect(const std::vector<LinkAddress>& addresses, Deadline deadline) {
  return group_->is_lowest(rank_) ? group_->connect(addresses, deadline) : Status();
}

Status PeerMember::start(PeerListener* listener, bool looks_around) {
  if (looks_around) HEP_TRY(group_->start_thread());
  group_->subscribe(rank_, *listener, looks_around);
  return Status();
}

void PeerMember::stop() noexcept { group_->unsubscribe(rank_); }

Status PeerMember::all_gather(const void* send, void* receive, size_t bytes, Deadline deadline,
                              int* missing) {
  return group_->all_gather(rank_, send, receive, bytes, deadline, missing);
}

void PeerMember::report(const PeerFailure& failure) { group_->report(failure); }

}  // namespace hep
