// SPDX-License-Identifier: Apache-2.0
// Finds out which kinds of memory work here, and chooses the one that the ranks use.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "memory/kind.h"

namespace hep {

// Returns the kinds of a backend that work on this device, as a set of memory_kind_bit(). It tries
// each kind until the kind has worked once: it allocates a little, exports it and maps it again.
// Attributes of the device are not enough, because they claim kinds that fail. For the cuda backend
// the setting HEP_MEMORY narrows the set. HEP_LOG=debug tells why a kind is missing.
// hepErrorOutOfMemory if there is no room to try.
Status probe_memory_kinds(hepBackend_t backend, int device, uint32_t* mask);

// The outcome of trying a kind.
struct MemoryTrial {
  MemoryKind kind;
  Status status;
};

// Returns the set of kinds that worked. If none worked and one failed for lack of memory, returns
// that error, because it says nothing about the kind.
Status working_memory_kinds(const std::vector<MemoryTrial>& trials, uint32_t* mask);

// Returns the kind that all ranks use: the first that every rank has. The order is fabric across
// hosts; within a host descriptor, ipc, fabric. This is a pure function of what all ranks know, so
// all ranks choose alike. `masks` [R] are the ranks' probe_memory_kinds(). The error names a rank
// for each missing kind: hepErrorUnreachable across hosts, hepErrorUnsupported within one.
Status choose_memory_kind(hepBackend_t backend, const std::vector<uint32_t>& masks,
                          bool several_hosts, MemoryKind* kind);

}  // namespace hep
