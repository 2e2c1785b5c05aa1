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
  bool several_hosts = false;
  std::vector<hep::Lane> lanes;

  hep::LogCallback log;  // goes last, so that it receives what the others say as they go
  std::unique_ptr<hep::Window> window;
  std::unique_ptr<hep::Heap> heap;
  hep::Registrations registrations;
  std::unique_ptr<hep::PeerMember> member;  // takes leave when nothing will be signalled any more
  std::unique_ptr<hep::Backend> backend;
  std::unique_ptr<hep::Health> health;

  std::atomic<int> live_routings{0};

  // By lane: the routing of which an operation is between its halves; NULL: none.
  std::vector<struct hepRouting*> split;

  const hep::LiveHandle handle{hep::HandleKind::kComm, this};

  void* heap_address() const;

  // The error of the first failed wait or of an abort, if any: operations return it at once.
  hep::Status check() const { return health->check(); }
};

namespace hep {

// Refuses NULL and pointers to something else.
Status check_comm(hepComm_t comm);

// Ends a communicator that has no routings.
Status destroy_comm(hepComm_t comm);

hepLimits_t limits_of(const hepComm& comm);

// Returns the first failure. Without one, tells of an index that was no expert's, or of rows that
// did not fit.
Status async_error(const hepComm& comm);

Status allocate_memory(hepComm_t comm, size_t bytes, void** pointer);
Status free_memory(hepComm_t comm, void* pointer);

}  // namespace hep
