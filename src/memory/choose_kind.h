// SPDX-License-Identifier: Apache-2.0
// Which kinds of memory work here, and which one the ranks use.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "memory/kind.h"

namespace hep {

// The kinds of a backend that work on this device, as a set of memory_kind_bit(). Each is tried,
// until it has worked once, with a small allocation, which is exported and mapped again: what
// attributes claim is not enough. For the cuda backend the setting HEP_MEMORY narrows the set.
// HEP_LOG=debug tells why a kind is missing. hepErrorOutOfMemory where there is no room to find
// out.
Status probe_memory_kinds(hepBackend_t backend, int device, uint32_t* mask);

// What came of trying a kind.
struct MemoryTrial {
  MemoryKind kind;
  Status status;
};

// The set of those that worked. If none did, and one for want of memory, that is the error: it says
// nothing of the kind.
Status working_memory_kinds(const std::vector<MemoryTrial>& trials, uint32_t* mask);

// The kind that all ranks use: the first that every rank has. Across hosts that is fabric; within
// one descriptor, ipc, fabric. A pure function of what all ranks know, so all come to the same
// result. `masks` [R] are the ranks' probe_memory_kinds(). The error names a rank for each missing
// kind: hepErrorUnreachable across hosts, hepErrorUnsupported within one.
Status choose_memory_kind(hepBackend_t backend, const std::vector<uint32_t>& masks,
                          bool several_hosts, MemoryKind* kind);

}  // namespace hep
