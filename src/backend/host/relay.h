// SPDX-License-Identifier: Apache-2.0
// What combine does between domains. The ranks of a domain send their sums for a token of another
// domain to the rail peer of its rank, which adds them up, rounds once, and sends one part over the
// network. All move in chunks of the rows that the token's rank sent to this domain in dispatch.
#pragma once

#include <hybridep.h>

#include <array>
#include <cstdint>
#include <optional>

#include "backend/host/operation.h"
#include "backend/host/routing.h"
#include "backend/host/row_arithmetic.h"
#include "base/status.h"
#include "base/thread_annotations.h"

namespace hep {

// Counts what the relay of this rank is to send, and tells the rail peers what this rank calls, and
// that its pool has room.
void begin_network_combine(const Operation& operation, uint64_t call,
                           const HostRoutingState& state);

// Writes this rank's sums for ranks of other domains into the relays.
class RelayWriter {
 public:
  RelayWriter(const Operation& operation, const HostRoutingState& state);

  // Each source has one at least: all ranks signal it.
  int chunks_of(int source) const;
  int num_chunks() const { return num_chunks_; }  // of the source that has most

  // Waits until the relay has room for the next chunk of a source; what follows is about that
  // chunk.
  Status begin(int source, int chunk);
  bool holds(const Row& row) const { return row.position < end_; }
  void* partial(const Row& row) const;
  float* gradients(const Row& row) const;
  // Tells the relay that this rank's sums are there.
  void end();

 private:
  const Operation& operation_;
  const HostRoutingState& state_;
  int num_chunks_ = 0;
  int source_ = 0;
  int first_ = 0, end_ = 0;  // positions
  void* chunk_ = nullptr;
};

// Adds up what the ranks of this domain have sent for the rail peers, in one combine.
class Relay {
 public:
  Relay(const Operation& operation, const RowArithmetic& arithmetic, const hepCombineArgs_t& args,
        const HostRoutingState& state);

  // Adds up and sends the chunks that are complete; waits for nothing. *worked tells whether there
  // were any. Fails if a rail peer has called otherwise.
  Status step(bool* worked);

  bool is_done() const;
  bool is_of(const HostRoutingState& state) const { return &state == &state_; }
  void end_waits(hepResult_t result) const { operation_.end_waits(result); }

 private:
  int chunks_of(int domain) const;
  bool may_send(int domain) const;
  bool is_complete(int domain, uint64_t number) const;
  Status compare_calls(int domain) const;
  Status relay_chunk(int domain);
  uint64_t add_up(int domain, int chunk, void* sums, void* out) const;
  const NetworkCall& call_of(int domain) const;

  const Operation operation_;
  const HostRoutingState& state_;
  const SumRows sum_;
  const int columns_;
  const uint64_t part_bytes_;
  const uint64_t call_;
  const bool takes_gradients_;
  std::array<int, kMaxDomains> next_chunk_{};
};

// The relay of a lane: it works in the thread of the proxy, from the first half of a combine on, so
// that the ranks of other domains wait for no call of this one.
class RelayStation {
 public:
  // What a combine begins; the one before is done. `state` may not go before cancel() or the end.
  void begin(const Operation& operation, const RowArithmetic& arithmetic,
             const hepCombineArgs_t& args, const HostRoutingState& state) HEP_EXCLUDES(mutex_);
  void cancel(const HostRoutingState& state) HEP_EXCLUDES(mutex_);

  // Returns whether there was anything to do.
  bool work() HEP_EXCLUDES(mutex_);

 private:
  Mutex mutex_;
  std::optional<Relay> relay_ HEP_GUARDED_BY(mutex_);
};

// Waits until all that the relay has to send in this combine, and the call, have been delivered.
Status await_relay(const Operation& operation);

// The parts that other domains send back, where they land.
class Parts {
 public:
  Parts(const Operation& operation, const hepCombineArgs_t& args, const HostRoutingState& state);

  // Waits for the parts of a token, and of all tokens.
  Status await(int64_t token) const;
  Status await_all() const;

  const void* row(const RemotePart& part) const;
  const float* gradients(const RemotePart& part) const;  // [K]

 private:
  struct Chunk {
    const char* base;
    int row, num_rows;
  };
  Chunk chunk_of(const RemotePart& part) const;
  Status await_chunks(int domain, int count) const;

  const Operation& operation_;
  const HostRoutingState& state_;
  const uint64_t part_bytes_;
};

}  // namespace hep
