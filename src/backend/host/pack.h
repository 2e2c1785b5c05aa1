// SPDX-License-Identifier: Apache-2.0
// Packs the rows of this rank that go to other domains, each once, and sends them chunk by chunk.
#pragma once

#include <hybridep.h>

#include <cstdint>

#include "backend/host/operation.h"
#include "backend/host/routing.h"
#include "backend/host/row_copier.h"
#include "base/status.h"

namespace hep {

class Packer {
 public:
  // After publish(), which leaves quantised rows, scales and weights in the window.
  Packer(const Operation& operation, const hepDispatchArgs_t& args, const HostRoutingState& state);

  // Sends chunk number `chunk` of this dispatch to each domain that has so many. Waits until the
  // network and the domain have room for it.
  Status pack(int chunk);

  // Of the domain that has most. Each has one at least, whose header tells the call.
  int num_chunks() const { return num_chunks_; }

  // Waits until all chunks have been delivered.
  Status await_sent() const;

 private:
  int chunks_to(int domain) const;
  Status pack_chunk(int domain, int chunk);
  Status await_room(int domain, uint64_t number) const;
  uint64_t fill(void* chunk, int domain, int number, uint32_t first, uint32_t num_rows) const;

  const Operation& operation_;
  const hepDispatchArgs_t& args_;
  const HostRoutingState& state_;
  const int64_t row_bytes_;
  const char* rows_;  // [T]
  const RowCopier copier_;
  int num_chunks_ = 0;
};

}  // namespace hep
