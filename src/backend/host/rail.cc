// SPDX-License-Identifier: Apache-2.0
#include "backend/host/rail.h"

#include <algorithm>
#include <utility>

#include "backend/channels.h"
#include "backend/host/signal.h"
#include "protocol/at.h"

namespace hep {

Rail::Rail(const LaneContext& context, std::function<void()> wake)
    : rows_sent(context.lane.topology().num_domains()),
      parts_due(rows_sent.size()),
      parts_taken(rows_sent.size()),
      rows_taken(context.lane.topology().num_ranks),
      relay_sent(context.lane.topology().num_ranks),
      parts_sent(rows_sent.size()),
      context_(context),
      topology_(context.lane.topology()),
      wake_(std::move(wake)),
      ring_(descriptor_slots(context.lane.network_layout)),
      writer_(ring_.data(), static_cast<uint32_t>(ring_.size())),
      credits_sent_(rows_sent.size()) {}

ProxyPlan::LanePlan Rail::plan() {
  ProxyPlan::LanePlan plan{};
  plan.ring = ring_.data();
  plan.ring_slots = static_cast<uint32_t>(ring_.size());
  fill_channels(context_.lane, plan.channels);
  plan.inboxes = at<Inbox>(context_.windows[context_.rank], context_.lane.network_layout.inboxes);
  return plan;
}

void Rail::post(WriteKind kind, int domain, uint64_t slot, uint64_t target, uint64_t bytes) {
  const Lock lock(mutex_);
  writer_.push({kind, static_cast<uint32_t>(domain), static_cast<uint32_t>(slot),
                static_cast<uint32_t>(target),
                static_cast<uint32_t>(align_up(bytes, kNetworkGranularity))});
}

void Rail::send(WriteKind kind, int domain, uint64_t slot, uint64_t target, uint64_t bytes) {
  post(kind, domain, slot, target, bytes);
  wake_();
}

const uint64_t& Rail::arrived(int via, WriteKind kind, int domain) const {
  return *at<Inbox>(context_.windows[via], context_.lane.network_layout.inbox_at(domain))
              ->arrived_of(kind);
}

const uint64_t& Rail::completed(WriteKind kind, int domain) const {
  return *at<Inbox>(context_.windows[context_.rank], context_.lane.network_layout.inbox_at(domain))
              ->completed_of(kind);
}

uint64_t Rail::taken_by_all(int domain) const {
  uint64_t least = ~uint64_t{0};
  for (int number = 0; number < topology_.domain_size; ++number)
    least = std::min(
        least, load_acquire(at<uint64_t>(context_.windows[context_.rank],
                                         context_.lane.network_layout.taken_at(domain, number))));
  return least;
}

bool Rail::send_credits() {
  bool sent = false;
  for (int i = 0; i < num_others(); ++i) {
    const int domain = in_turn(i);
    for (const uint64_t taken = taken_by_all(domain); credits_sent_[domain] < taken;
         ++credits_sent_[domain]) {
      post(WriteKind::kCredit, domain, 0, 0, 0);
      sent = true;
    }
  }
  return sent;
}

}  // namespace hep
