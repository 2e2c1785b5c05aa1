// SPDX-License-Identifier: Apache-2.0
// How a rank finds and maps what a peer has described by a handle: in this process the memory itself, in
// others by what was exported.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "base/status.h"
#include "memory/kind.h"

namespace hep {

// The memory that ranks of this process share, so that they find each other's without the kernel's help.
class LocalAllocations {
 public:
  static LocalAllocations& instance();

  void add(uint64_t id, const std::shared_ptr<Allocation>& allocation);
  void remove(uint64_t id);

  // NULL if it is gone.
  std::shared_ptr<Allocation> find(uint64_t id);

 private:
  std::mutex mutex_;
  std::unordered_map<uint64_t, std::weak_ptr<Allocation>> allocations_;
};

// Maps memory of rank `peer` for `device` of this process. `descriptor` is -1 for a peer of this process
// and for kinds that pass none.
Status map_peer_memory(int device, int rank, int peer, const WindowHandle& handle, int descriptor,
                       std::unique_ptr<Mapping>* out);

// Adds up what went wrong with several peers.
class PeerFailures {
 public:
  void add(const Status& status) {
    if (status.ok()) return;
    if (result_ == hepSuccess) result_ = status.result();
    text_ += (text_.empty() ? "" : "; ") + status.message();
  }

  Status status() const { return result_ == hepSuccess ? Status() : Status(result_, text_); }

 private:
  hepResult_t result_ = hepSuccess;
  std::string text_;
};

}  // namespace hep
