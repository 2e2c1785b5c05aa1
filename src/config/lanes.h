// SPDX-License-Identifier: Apache-2.0
// The lanes of a communicator: sequences of operations that do not disturb each other, because each has
// a part of the window, signals and epochs of its own. Pure functions, without a GPU.
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
  int32_t number;              // among the lanes of its mode
  uint64_t offset;             // of its part of a window
  Shape shape;                 // of the whole job; max_tokens is that of its mode
  WindowLayout window_layout;  // from its part on; the heap, which lies behind all lanes, included.
                               // Its shape is that of a domain, whose ranks share the window.
  RoutingLayout routing_layout;
  Budget budget;
  NetworkLayout network_layout;  // behind that of the window; empty with one domain
  NetworkRoutingLayout network_routing_layout;

  const Topology& topology() const { return network_layout.topology; }
  uint64_t routing_bytes() const { return network_routing_layout.end; }
};

// All lanes of a resolved config: those of throughput, then those of low latency. A window is
//
//   [lane 0] [lane 1] ... [heap]
std::vector<Lane> make_lanes(const hepConfig_t& config, int num_ranks);

// The bytes of a window with these lanes, its heap included.
uint64_t window_bytes(const std::vector<Lane>& lanes);

hepWorkspace_t make_workspace(const hepConfig_t& config, int num_ranks);

// How many lanes serve routings of a mode.
int num_lanes(const hepConfig_t& config, int32_t mode);

}  // namespace hep
