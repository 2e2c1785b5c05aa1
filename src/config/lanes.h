// SPDX-License-Identifier: Apache-2.0
// The lanes of a communicator. A lane is a sequence of operations. Lanes do not disturb each other,
// because each has its own part of the window, signals and epochs. These are pure functions, which
// need no GPU.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <vector>

#include "config/config.h"
#include "protocol/network_layout.h"
#include "protocol/routing_layout.h"
#include "protocol/shape.h"
#include "protocol/window_layout.h"

namespace hep {

struct Lane {
  hepMode_t mode;
  int32_t number;   // among the lanes of its mode
  uint64_t offset;  // of its part in a window
  Shape shape;      // of the whole job; max_tokens is that of its mode
  // Relative to its part. Includes the heap, which follows all lanes. Its shape is that of a
  // domain, because the ranks of a domain share the window.
  WindowLayout window_layout;
  RoutingLayout routing_layout;
  Budget budget;
  NetworkLayout network_layout;  // behind that of the window; empty with one domain
  NetworkRoutingLayout network_routing_layout;

  const Topology& topology() const { return network_layout.topology; }
  uint64_t routing_bytes() const { return network_routing_layout.end; }
};

// Returns all lanes of a resolved config: those of throughput, then those of low latency. A window
// is
//
//   [lane 0] [lane 1] ... [heap]
std::vector<Lane> make_lanes(const hepConfig_t& config, int num_ranks);

// Returns the bytes of a window with these lanes, including its heap.
uint64_t window_bytes(const std::vector<Lane>& lanes);

hepWorkspace_t make_workspace(const hepConfig_t& config, int num_ranks);

// Returns the number of lanes for routings of a mode.
int num_lanes(const hepConfig_t& config, int32_t mode);

}  // namespace hep
