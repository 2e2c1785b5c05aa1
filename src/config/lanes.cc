// SPDX-License-Identifier: Apache-2.0
#include "config/lanes.h"

#include "protocol/choices.h"
#include "protocol/location.h"
#include "protocol/routing_layout.h"
#include "protocol/shape.h"
#include "protocol/window_layout.h"

namespace hep {
namespace {

constexpr uint64_t kScratchBytes = 4096;  // of the kernels of a lane, besides their counters

Lane make_lane(const hepConfig_t& config, int num_ranks, hepMode_t mode, int32_t number) {
  Lane lane{};
  lane.mode = mode;
  lane.number = number;
  lane.shape = make_shape(config, num_ranks);
  if (mode == hepModeLowLatency) {
    lane.shape.max_tokens = config.low_latency_tokens;
    lane.shape.sets = 2;
    if (can_assign(lane.shape)) lane.shape.choice_tokens = config.low_latency_tokens;
  }
  lane.window_layout = WindowLayout::make(lane.shape);
  lane.routing_layout = RoutingLayout::make(lane.shape);
  lane.budget = make_budget(config, mode);
  return lane;
}

uint64_t scratch_bytes(const Lane& lane) {
  const uint64_t counters =
      static_cast<uint64_t>(lane.shape.num_experts) + 2 * lane.shape.num_ranks;
  return kScratchBytes + lane.budget.routing_blocks * counters * sizeof(uint32_t);
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
      end += lane.window_layout.heap;
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
  workspace.routing_bytes = lanes.front().routing_layout.total;
  workspace.scratch_bytes = kMaxRegistrations * num_ranks * sizeof(void*);
  for (const Lane& lane : lanes) {
    const WindowLayout own = WindowLayout::make(lane.shape);
    workspace.scratch_bytes += scratch_bytes(lane);
    if (lane.mode == hepModeLowLatency) {
      workspace.low_latency_bytes += own.heap;
      workspace.low_latency_routing_bytes = lane.routing_layout.total;
      continue;
    }
    workspace.signal_bytes += own.records;
    workspace.record_bytes += own.published - own.records;
    workspace.token_bytes += own.slots - own.published;
    workspace.partial_bytes += own.heap - own.slots;
  }
  return workspace;
}

}  // namespace hep
