// SPDX-License-Identifier: Apache-2.0
#include "backend/host/backend.h"

#include <cstdlib>
#include <new>
#include <utility>

#include "backend/host/routing.h"

namespace hep {

HostBackend::HostBackend(BackendContext context, const RowArithmetic& arithmetic)
    : rank_(context.rank),
      contexts_(std::move(context.lanes)),
      arithmetic_(arithmetic),
      waiter_(context.rank, context.timeout_ms) {
  for (const LaneContext& lane : contexts_) {
    lanes_.push_back({lane, nullptr, nullptr});
    if (lane.lane.network_layout.empty()) continue;
    lanes_.back().rail = std::make_unique<Rail>(lane, context.wake_network);
    lanes_.back().relays = std::make_unique<RelayStation>();
  }
}

void HostBackend::join_network(ProxyPlan* plan) {
  for (const HostLane& lane : lanes_) plan->lanes.push_back(lane.rail->plan());
  plan->chore = [this] {
    bool worked = false;
    for (const HostLane& lane : lanes_) {
      worked |= lane.rail->send_credits();
      worked |= lane.relays->work();
    }
    return worked;
  };
}

Status HostBackend::create_routing(int lane, const RoutingRequest& request,
                                   std::unique_ptr<BackendRouting>* routing) {
  HostRouting::Memory own;
  if (request.memory == nullptr) own.reset(std::calloc(request.bytes(), 1));
  std::unique_ptr<BackendRouting> made;
  if (own || request.memory != nullptr)
    made.reset(new (std::nothrow) HostRouting(*this, lanes_[lane], request, std::move(own)));
  if (!made)
    return error(hepErrorOutOfMemory, "rank %d: no memory for a routing of %llu bytes", rank_,
                 static_cast<unsigned long long>(request.bytes()));
  *routing = std::move(made);
  return {};
}

Backend::BadIndex HostBackend::bad_index() const {
  const Lock lock(mutex_);
  return bad_index_;
}

Backend::Overflow HostBackend::overflow() const {
  const Lock lock(mutex_);
  return overflow_;
}

Status HostBackend::check_stream(hepStream_t stream) const {
  if (stream == nullptr) return {};
  return error(hepErrorInvalidArgument,
               "rank %d: stream is %p, but on the host backend it must be NULL", rank_,
               static_cast<void*>(stream));
}

Operation HostBackend::start(HostLane& lane, hepOperation_t kind, Step step) {
  uint64_t& epoch = lane.epochs[kind];
  if (step != Step::kReceive) ++epoch;
  return Operation(lane.context, waiter_, lane.rail.get(), kind, epoch);
}

void HostBackend::note_bad_index(int64_t token, int64_t k, int64_t value) {
  const Lock lock(mutex_);
  if (!bad_index_.found) bad_index_ = {true, token, k, value};
}

void HostBackend::note_overflow(const Overflow& overflow) {
  const Lock lock(mutex_);
  if (!overflow_.found) overflow_ = overflow;
}

Status create_host_backend(BackendContext context, std::unique_ptr<Backend>* backend) try {
  const RowArithmetic* arithmetic = nullptr;
  HEP_TRY(choose_row_arithmetic(&arithmetic));
  *backend = std::make_unique<HostBackend>(std::move(context), *arithmetic);
  return {};
} catch (const std::bad_alloc&) {
  return error(hepErrorOutOfMemory, "rank %d: no memory for the host backend", context.rank);
}

}  // namespace hep
