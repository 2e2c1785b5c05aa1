// SPDX-License-Identifier: Apache-2.0
#include "memory/choose_kind.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "base/fork.h"
#include "base/log.h"
#include "base/thread_annotations.h"
#include "config/settings.h"

namespace hep {
namespace {

constexpr size_t kProbeBytes = 4096;

// Allocates memory, exports it and maps the export. An IPC handle cannot be opened in the process
// that made it, so ipc memory is only allocated and exported.
Status probe(const MemoryKindOperations& operations, int device) {
  std::shared_ptr<Allocation> allocation;
  HEP_TRY(operations.allocate(device, kProbeBytes, &allocation));
  WindowHandle handle{};
  allocation->describe(&handle);
  std::unique_ptr<Mapping> mapping;
  // `local` is NULL for the other kinds, so that they import the memory instead of sharing it.
  const std::shared_ptr<Allocation> local =
      operations.kind == MemoryKind::cuda_ipc ? allocation : nullptr;
  return operations.map(device, {handle, allocation->descriptor(), local}, &mapping);
}

// Remembers the kinds that have worked on a device in this process.
class WorkingKinds {
 public:
  // This is never destroyed, because threads may create communicators at exit.
  static WorkingKinds& instance() {
    static WorkingKinds* const kinds = new WorkingKinds;
    return *kinds;
  }

  bool contain(MemoryKind kind, int device) {
    const Lock lock(mutex_);
    return kinds_.count({kind, device}) != 0;
  }

  void add(MemoryKind kind, int device) {
    const Lock lock(mutex_);
    kinds_.insert({kind, device});
  }

 private:
  HeldOverForks mutex_;
  std::set<std::pair<MemoryKind, int>> kinds_ HEP_GUARDED_BY(mutex_);
};

// A kind that has worked is not tried again. When CUDA frees memory of cudaMalloc, it may wait for
// the whole device, and so for a kernel of another communicator that waits for a peer.
Status probe_once(const MemoryKindOperations& operations, int device) {
  WorkingKinds& working = WorkingKinds::instance();
  if (working.contain(operations.kind, device)) return Status();
  HEP_TRY(probe(operations, device));
  working.add(operations.kind, device);
  return Status();
}

// Returns the kinds that HEP_MEMORY admits.
Status admitted_kinds(hepBackend_t backend, uint32_t* mask) {
  *mask = ~0u;
  if (backend == hepBackendHost) return Status();
  int64_t choice = 0;
  HEP_TRY(setting_number("HEP_MEMORY", &choice));
  constexpr MemoryKind kChoices[] = {MemoryKind::cuda_descriptor, MemoryKind::cuda_ipc,
                                     MemoryKind::cuda_fabric};
  if (choice != 0) *mask = memory_kind_bit(kChoices[choice - 1]);
  return Status();
}

std::vector<MemoryKind> candidates(hepBackend_t backend, bool several_hosts) {
  if (backend == hepBackendHost)
    return several_hosts ? std::vector<MemoryKind>{}
                         : std::vector<MemoryKind>{MemoryKind::host_descriptor};
  if (several_hosts) return {MemoryKind::cuda_fabric};
  return {MemoryKind::cuda_descriptor, MemoryKind::cuda_ipc, MemoryKind::cuda_fabric};
}

}  // namespace

Status working_memory_kinds(const std::vector<MemoryTrial>& trials, uint32_t* mask) {
  *mask = 0;
  Status full;
  for (const MemoryTrial& trial : trials) {
    if (trial.status.ok())
      *mask |= memory_kind_bit(trial.kind);
    else
      log_message(hepLogDebug, "memory of kind %s does not work here: %s",
                  memory_kind_name(trial.kind), trial.status.message().c_str());
    if (trial.status.result() == hepErrorOutOfMemory && full.ok()) full = trial.status;
  }
  return *mask == 0 ? full : Status();
}

Status probe_memory_kinds(hepBackend_t backend, int device, uint32_t* mask) {
  uint32_t admitted = 0;
  HEP_TRY(admitted_kinds(backend, &admitted));
  std::vector<MemoryTrial> trials;
  for (const MemoryKind kind : kMemoryKinds) {
    const MemoryKindOperations* operations = nullptr;
    const bool admits = (admitted & memory_kind_bit(kind)) != 0;
    if (!admits || !find_memory_kind(kind, &operations).ok()) continue;
    if (operations->backend == backend) trials.push_back({kind, probe_once(*operations, device)});
  }
  return working_memory_kinds(trials, mask);
}

Status choose_memory_kind(hepBackend_t backend, const std::vector<uint32_t>& masks,
                          bool several_hosts, MemoryKind* kind) {
  std::string missing;
  for (const MemoryKind candidate : candidates(backend, several_hosts)) {
    const auto without = std::find_if(masks.begin(), masks.end(), [candidate](uint32_t mask) {
      return (mask & memory_kind_bit(candidate)) == 0;
    });
    if (without == masks.end()) {
      *kind = candidate;
      return Status();
    }
    missing += (missing.empty() ? "" : ", ") + std::string(memory_kind_name(candidate)) +
               " on rank " + std::to_string(without - masks.begin());
  }
  if (missing.empty())
    return error(hepErrorUnreachable,
                 "the ranks run on several hosts, the host backend serves only one");
  return error(
      several_hosts ? hepErrorUnreachable : hepErrorUnsupported,
      "no kind of memory works on every rank of %s; missing are %s (HEP_MEMORY narrows the "
      "choice, HEP_LOG=debug tells more)",
      several_hosts ? "several hosts" : "this host", missing.c_str());
}

}  // namespace hep
