// SPDX-License-Identifier: Apache-2.0
// hepCommRegister and hepCommDeregister: steps that all ranks take together, or none does.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "backend/registrations.h"
#include "base/status.h"
#include "comm/comm.h"
#include "memory/registered_memory.h"

namespace hep {

// What a communicator has registered, and what it has mapped of its peers' registrations.
struct RegisteredState {
  explicit RegisteredState(int num_ranks)
      : own(kMaxRegistrations), mappings(kMaxRegistrations * num_ranks) {}

  Registrations registrations;
  std::vector<std::unique_ptr<RegisteredMemory>> own;  // by slot; on the cuda backend
  std::vector<std::unique_ptr<Mapping>> mappings;      // [slot][rank]
};

Status register_memory(hepComm& comm, void* pointer, size_t bytes);
Status deregister_memory(hepComm& comm, void* pointer);

}  // namespace hep
