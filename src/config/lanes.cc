// SPDX-License-Identifier: Apache-2.0
#include "config/lanes.h"

#include "protocol/choices.h"
#include "protocol/location.h"
#include "protocol/records.h"
#include "protocol/routing_layout.h"
#include "protocol/shape.h"
#include "protocol/window_layout.h"

namespace hep {
namespace {

constexpr uint64_t kScratchBytes = 4096;  // for the kernels of a lane, besides their counters

// The job as a domain sees it: its ranks and their experts.
Shape shape_of_domain(const Shape& job, const Topology& topology) {
  Shape domain = job;
  domain.num_ranks = topology.domain_size;
  domain.num_experts = topology.domain_size * job.num_local_experts();
  return domain;
}

Lane make_lane(const hepConfig_t& config, int num_ranks, hepMode_t mode, int32_t number) {
  const Topology topology = make_topology(config, num_ranks);
  Lane lane{};
  lane.mode = mode;
  lane.number = number;
  lane.shape = make_shape(config, num_ranks);
  if (mode == hepModeLowLatency) {
    lane.shape.max_tokens = config.low_latency_tokens;
    lane.shape.sets = 2;
    if (topology.num_domains() == 1 && can_assign(lane.shape))
      lane.shape.choice_tokens = config.low_latency_tokens;
  }
  lane.window_layout = WindowLayout::make(shape_of_domain(lane.shape, topology));
  lane.routing_layout = RoutingLayout::make(lane.shape);
  lane.network_layout =
      NetworkLayout::make(lane.shape, topology.domain_size, lane.window_layout.heap,
                          static_cast<uint64_t>(config.network_bytes));
  lane.network_routing_layout =
      NetworkRoutingLayout::make(lane.shape, lane.network_layout, lane.routing_layout.total);
  lane.budget = make_budget(config, mode);
  return lane;
}

uint64_t scratch_bytes(const Lane& lane) {
  return kScratchBytes + block_count_bytes(lane.shape, lane.budget.routing_blocks);
}

}  // namespace

int num_lanes(const hepConfig_t& config, int32_t mode) {
  if (mode == hepModeThroughput) return config.lanes;
  return config.low_latency_tokens > 0 ? kLowLatencyLanes : 0;
}

std::vector<Lane> make_lanes(const hepConfig_t& config, int num_ranks) {
  std::vector<Lane> lanes;
  uint64_t end = 0;
  for (const hepMode_t mode : {hepModeThroughput, hepModeLowLatency}) {
    for (int32_t number = 0; number < num_lanes(config, mode); ++number) {
      Lane lane = make_lane(config, num_ranks, mode, number);
      lane.offset = end;
      end += lane.network_layout.end;
      lanes.push_back(lane);
    }
  }
  for (Lane& lane : lanes) lane.window_layout.move_heap(end - lane.offset);
  return lanes;
}

uint64_t window_bytes(const std::vector<Lane>& lanes) { return lanes.front().window_layout.total; }

hepWorkspace_t make_workspace(const hepConfig_t& config, int num_ranks) {
  const std::vector<Lane> lanes = make_lanes(config, num_ranks);
  const WindowLayout& first = lanes.front().window_layout;
  hepWorkspace_t workspace = HEP_WORKSPACE_INITIALIZER;
  workspace.total_bytes = window_bytes(lanes);
  workspace.heap_bytes = first.total - first.heap;
  workspace.routing_bytes = lanes.front().routing_bytes();
  workspace.scratch_bytes = kMaxRegistrations * num_ranks * sizeof(void*);
  for (const Lane& lane : lanes) {
    const WindowLayout own = WindowLayout::make(lane.window_layout.shape);
    workspace.scratch_bytes += scratch_bytes(lane);
    if (lane.mode == hepModeLowLatency) {
      workspace.low_latency_bytes += lane.network_layout.end;
      workspace.low_latency_routing_bytes = lane.routing_bytes();
      continue;
    }
    workspace.signal_bytes += own.records;
    workspace.record_bytes += own.published - own.records;
    workspace.token_bytes += own.slots - own.published;
    workspace.partial_bytes += own.heap - own.slots;
    workspace.network_bytes += lane.network_layout.end - own.heap;
  }
  return workspace;
}

}  // namespace hep
