// SPDX-License-Identifier: Apache-2.0
// The parts of a communicator. comm/create.cc makes them; hepComm owns them.
#pragma once

#include <hybridep.h>

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/plan.h"
#include "base/log.h"
#include "comm/health.h"
#include "config/lanes.h"
#include "memory/heap.h"
#include "memory/registration.h"
#include "memory/window.h"
#include "network/network.h"
#include "peers/member.h"

namespace hep {

// The parts stand in the order in which creation makes them, and go in reverse.
struct CommParts {
  // Ends every operation that still runs, then frees. Never waits for peers.
  ~CommParts();

  int rank = 0;
  int num_ranks = 0;
  hepConfig_t config{};  // resolved; the backend is the one that was chosen
  int device = -1;
  int capability_major = 0;  // of the device; 0 on the host
  int sms = 0;               // of the device, for this rank to choose from; 0 on the host
  bool several_hosts = false;
  std::vector<Lane> lanes;

  const Topology& topology() const { return lanes.front().topology(); }
  // The rank's GPU as the plan sees it, on the cuda backend.
  Gpu gpu() const { return {&profile_of(capability_major), sms}; }

  LogCallback log;  // goes last, so that it receives the messages of the other parts
  std::unique_ptr<Window> window;
  std::unique_ptr<Heap> heap;
  Registrations registrations;
  std::unique_ptr<PeerMember> member;  // goes after the backend: peers hear of it when this rank
                                       // signals nothing more
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Network> network;  // NULL with one domain; its proxy uses the backend's memory
  std::unique_ptr<Health> health;
};

}  // namespace hep
