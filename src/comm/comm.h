// SPDX-License-Identifier: Apache-2.0
// The communicator: created in order, destroyed in reverse.
#pragma once

#include <hybridep.h>

#include <atomic>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "base/deadline.h"
#include "base/handles.h"
#include "base/log.h"
#include "base/status.h"
#include "comm/health.h"
#include "config/lanes.h"
#include "memory/heap.h"
#include "memory/registration.h"
#include "memory/window.h"
#include "peers/member.h"

struct hepComm {
  // Ends every operation that still runs, then frees. Never waits for peers.
  ~hepComm();

  int rank = 0;
  int num_ranks = 0;
  hepConfig_t config{};  // resolved; the backend is the one that was chosen
  int device = -1;
  int capability_major = 0;  // of the device; 0 on the host
  bool several_hosts = false;
  std::vector<hep::Lane> lanes;

  hep::LogCallback log;  // goes last, so that it receives what the others say as they go
  std::unique_ptr<hep::Window> window;
  std::unique_ptr<hep::Heap> heap;
  hep::Registrations registrations;
  std::unique_ptr<hep::PeerMember> member;  // takes leave when nothing will be signalled any more
  std::unique_ptr<hep::Backend> backend;
  std::unique_ptr<hep::Health> health;

  const hep::LiveHandle handle{hep::HandleKind::kComm, this};

  void* heap_address() const;

  // The error of the first failed wait or of an abort, if any: operations return it at once.
  hep::Status check() const { return health->check(); }

  // Before there are routings.
  void set_lanes(std::vector<hep::Lane> made);

  // Every routing says when it comes and goes.
  void add_routing() { ++num_routings_; }
  void remove_routing(int lane, const hepRouting* routing);
  int num_routings() const { return num_routings_; }

  // The routing of which an operation is between its halves on a lane; NULL: none. One thread at a
  // time uses a lane.
  const hepRouting* split_routing(int lane) const { return split_[lane]; }
  void begin_split(int lane, const hepRouting* routing) { split_[lane] = routing; }
  void end_split(int lane) { split_[lane] = nullptr; }

 private:
  std::atomic<int> num_routings_{0};
  std::vector<const hepRouting*> split_;  // by lane
};

namespace hep {

// Turns a caller's handle into the communicator. Refuses NULL and what is no handle, or not any more.
Status check_comm(hepComm_t& comm);

inline hepComm_t release_to_caller(std::unique_ptr<hepComm> comm) {
  return static_cast<hepComm_t>(comm.release()->handle.value());
}

// Ends a communicator that has no routings.
Status destroy_comm(hepComm_t comm);

hepLimits_t limits_of(const hepComm& comm);

// Returns the first failure. Without one, tells of an index that was no expert's, or of rows that
// did not fit.
Status async_error(const hepComm& comm);

Status allocate_memory(hepComm_t comm, size_t bytes, void** pointer);
Status free_memory(hepComm_t comm, void* pointer);

}  // namespace hep
