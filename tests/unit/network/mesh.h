// SPDX-License-Identifier: Apache-2.0
// Ranks that write to each other as a backend does: rows through a ring of slots with credits, and
// parts that land one after the other. Each rank is a domain.
#pragma once

#include <gtest/gtest.h>

#include <sched.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/thread_annotations.h"
#include "network/engine.h"
#include "network/ring.h"
#include "network/transport.h"

namespace hep {

struct MeshSizes {
  int num_domains = 3;
  int num_lanes = 1;
  int num_nics = 1;
  uint32_t slots = 4;        // of the rings of rows
  uint32_t chunk = 64;       // bytes
  uint32_t num_chunks = 20;  // of rows, and of parts, from each rank to each other
};

// Remembers what the proxy tells.
class MeshListener final : public ProxyListener {
 public:
  void network_failed(int rank, const std::string& cause) override {
    const Lock lock(mutex_);
    ++count_;
    rank_ = rank;
    cause_ = cause;
  }

  int count() const {
    const Lock lock(mutex_);
    return count_;
  }
  int rank() const {
    const Lock lock(mutex_);
    return rank_;
  }
  std::string cause() const {
    const Lock lock(mutex_);
    return cause_;
  }

 private:
  mutable Mutex mutex_;
  int count_ HEP_GUARDED_BY(mutex_) = 0, rank_ HEP_GUARDED_BY(mutex_) = -2;
  std::string cause_ HEP_GUARDED_BY(mutex_);
};

inline uint64_t load(const uint64_t* word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

// The memory of a rank, and the backend's part of the work.
//
//   rows_out [lanes][others][slots]   rows_in [lanes][others][slots]
//   parts_out [lanes][others][slots]  parts_in [lanes][others][num_chunks]
class MeshRank {
 public:
  MeshRank(const MeshSizes& sizes, int domain)
      : sizes_(sizes),
        domain_(domain),
        allowed_(sizes.num_chunks),
        memory_(end_of_lane() * sizes.num_lanes),
        inboxes_(sizes.num_lanes * sizes.num_domains),
        ring_slots_(ring_slots(sizes.num_domains * 4 * sizes.slots)) {
    for (int lane = 0; lane < sizes.num_lanes; ++lane) {
      rings_.emplace_back(ring_slots_);
      writers_.emplace_back(rings_[lane].data(), ring_slots_);
    }
    streams_.resize(inboxes_.size());
  }

  std::vector<NetworkSection> sections() { return {{memory_.data(), 0, memory_.size()}}; }

  ProxyPlan plan() {
    ProxyPlan plan{10 * domain_, domain_, sizes_.num_domains, {}, {}, {}};
    for (int d = 0; d < sizes_.num_domains; ++d) plan.rail.push_back(10 * d);
    for (int lane = 0; lane < sizes_.num_lanes; ++lane) {
      ProxyPlan::LanePlan planned{
          rings_[lane].data(), ring_slots_, {}, &inboxes_[lane * sizes_.num_domains]};
      const uint64_t begin = lane * end_of_lane(), ring = ring_bytes(), chunk = sizes_.chunk;
      const uint64_t pool = sizes_.num_chunks * chunk;
      planned.channels[static_cast<int>(WriteKind::kRows)] = {
          begin, sizes_.slots * chunk, chunk,        begin + ring, sizes_.slots * chunk,
          chunk, sizes_.slots,         sizes_.slots, chunk};
      planned.channels[static_cast<int>(WriteKind::kParts)] = {
          begin + 2 * ring, sizes_.slots * chunk, chunk, begin + 3 * ring, pool, chunk,
          sizes_.slots,     sizes_.num_chunks,    chunk};
      plan.lanes.push_back(planned);
    }
    return plan;
  }

  // Does what can be done now.
  void work() {
    for (int lane = 0; lane < sizes_.num_lanes; ++lane)
      for (int other = 0; other < sizes_.num_domains; ++other)
        if (other != domain_) work_with(lane, other);
  }

  // Chunks of each kind that are to be exchanged for now.
  void allow(uint64_t num_chunks) { allowed_ = num_chunks; }

  // Own writes to another that are not complete.
  uint64_t num_outstanding(int lane, int other) const {
    const Stream& stream = streams_[lane * sizes_.num_domains + other];
    const Inbox& box = inbox(lane, other);
    return stream.rows_sent + stream.parts_sent - load(box.completed_of(WriteKind::kRows)) -
           load(box.completed_of(WriteKind::kParts));
  }

  // Whether all chunks of all others are here and right, and all own ones are delivered.
  bool is_done() {
    for (int lane = 0; lane < sizes_.num_lanes; ++lane)
      for (int other = 0; other < sizes_.num_domains; ++other)
        if (other != domain_ && !is_done_with(lane, other)) return false;
    return true;
  }

  const Inbox& inbox(int lane, int other) const {
    return inboxes_[lane * sizes_.num_domains + other];
  }
  const MeshSizes& sizes() const { return sizes_; }
  int num_wrong() const { return num_wrong_; }
  MeshListener& listener() { return listener_; }

  void push(int lane, const WriteDescriptor& write) { writers_[lane].push(write); }

  // Rows of which nobody waits for a credit: at most as many as there are slots.
  void push_rows(int other, uint32_t count) {
    for (uint32_t chunk = 0; chunk < count; ++chunk) {
      fill(rows_out(0, other, chunk), 0, domain_, other, chunk, 'r');
      push(0, {WriteKind::kRows, static_cast<uint32_t>(other), chunk, chunk, sizes_.chunk});
    }
  }

 private:
  struct Stream {
    uint64_t rows_sent = 0, rows_read = 0, parts_sent = 0, parts_read = 0;
  };

  void work_with(int lane, int other) {
    Stream& stream = streams_[lane * sizes_.num_domains + other];
    const Inbox& box = inbox(lane, other);
    const auto to = static_cast<uint32_t>(other);
    while (load(box.arrived_of(WriteKind::kRows)) > stream.rows_read) {
      check(rows_in(lane, other, stream.rows_read), lane, other, domain_, stream.rows_read, 'r');
      ++stream.rows_read;
      push(lane, {WriteKind::kCredit, to, 0, 0, 0});
    }
    while (load(box.arrived_of(WriteKind::kParts)) > stream.parts_read) {
      check(parts_in(lane, other, stream.parts_read), lane, other, domain_, stream.parts_read, 'p');
      ++stream.parts_read;
    }
    while (stream.rows_sent < allowed_ && has_room(box, stream.rows_sent)) {
      const auto slot = static_cast<uint32_t>(stream.rows_sent % sizes_.slots);
      fill(rows_out(lane, other, slot), lane, domain_, other, stream.rows_sent++, 'r');
      push(lane, {WriteKind::kRows, to, slot, slot, sizes_.chunk});
    }
    while (stream.parts_sent < allowed_ &&
           stream.parts_sent < load(box.completed_of(WriteKind::kParts)) + sizes_.slots) {
      const auto slot = static_cast<uint32_t>(stream.parts_sent % sizes_.slots);
      const auto target = static_cast<uint32_t>(stream.parts_sent);
      fill(parts_out(lane, other, slot), lane, domain_, other, stream.parts_sent++, 'p');
      push(lane, {WriteKind::kParts, to, slot, target, sizes_.chunk});
    }
  }

  // A slot is free when its last content is delivered, and read there.
  bool has_room(const Inbox& box, uint64_t number) const {
    return number < load(box.completed_of(WriteKind::kRows)) + sizes_.slots &&
           number < load(box.arrived_of(WriteKind::kCredit)) + sizes_.slots;
  }

  bool is_done_with(int lane, int other) {
    const Stream& stream = streams_[lane * sizes_.num_domains + other];
    const Inbox& box = inbox(lane, other);
    const uint64_t all = allowed_;
    return stream.rows_read == all && stream.parts_read == all &&
           load(box.completed_of(WriteKind::kRows)) == all &&
           load(box.completed_of(WriteKind::kParts)) == all &&
           load(box.completed_of(WriteKind::kCredit)) == all;
  }

  uint64_t ring_bytes() const {
    return uint64_t{1} * (sizes_.num_domains - 1) * sizes_.slots * sizes_.chunk;
  }
  uint64_t end_of_lane() const {
    return 3 * ring_bytes() +
           uint64_t{1} * (sizes_.num_domains - 1) * sizes_.num_chunks * sizes_.chunk;
  }
  uint64_t block(int other) const { return other < domain_ ? other : other - 1; }
  char* in_ring(int ring, int lane, int other, uint64_t chunk) {
    return &memory_[lane * end_of_lane() + ring * ring_bytes() +
                    (block(other) * sizes_.slots + chunk % sizes_.slots) * sizes_.chunk];
  }
  char* rows_out(int lane, int other, uint64_t chunk) { return in_ring(0, lane, other, chunk); }
  char* rows_in(int lane, int other, uint64_t chunk) { return in_ring(1, lane, other, chunk); }
  char* parts_out(int lane, int other, uint64_t chunk) { return in_ring(2, lane, other, chunk); }
  char* parts_in(int lane, int other, uint64_t chunk) {
    return &memory_[lane * end_of_lane() + 3 * ring_bytes() +
                    (block(other) * sizes_.num_chunks + chunk) * sizes_.chunk];
  }

  // Bytes that no other chunk has.
  static uint64_t pattern(int lane, int from, int to, uint64_t chunk, char kind, uint64_t word) {
    const uint64_t key =
        (((uint64_t(lane) * 64 + from) * 64 + to) * 4 + (kind == 'p')) << 40 | chunk << 20 | word;
    return key * 0x9e3779b97f4a7c15u;
  }
  void fill(char* at, int lane, int from, int to, uint64_t chunk, char kind) const {
    for (uint64_t word = 0; word < sizes_.chunk / 8; ++word) {
      const uint64_t value = pattern(lane, from, to, chunk, kind, word);
      std::memcpy(at + 8 * word, &value, 8);
    }
  }
  void check(const char* at, int lane, int from, int to, uint64_t chunk, char kind) {
    for (uint64_t word = 0; word < sizes_.chunk / 8; ++word) {
      uint64_t value = 0;
      std::memcpy(&value, at + 8 * word, 8);
      num_wrong_ += value != pattern(lane, from, to, chunk, kind, word);
    }
  }

  const MeshSizes sizes_;
  const int domain_;
  uint64_t allowed_;
  std::vector<char> memory_;
  std::vector<Inbox> inboxes_;
  const uint32_t ring_slots_;
  std::vector<std::vector<PackedDescriptor>> rings_;
  std::vector<RingWriter> writers_;
  std::vector<Stream> streams_;
  MeshListener listener_;
  int num_wrong_ = 0;
};

// Opens a NIC of a rank.
using OpenNic = std::function<std::unique_ptr<Transport>(const std::vector<NetworkSection>&)>;

// Ranks of one process with transports between them.
class Mesh {
 public:
  Mesh(const MeshSizes& sizes, const OpenNic& open) {
    for (int d = 0; d < sizes.num_domains; ++d) {
      ranks_.push_back(std::make_unique<MeshRank>(sizes, d));
      nics_.emplace_back();
      for (int nic = 0; nic < sizes.num_nics; ++nic)
        nics_[d].push_back(open(ranks_[d]->sections()));
    }
    for (int d = 0; d < sizes.num_domains; ++d)
      for (int nic = 0; nic < sizes.num_nics; ++nic)
        for (int other = 0; other < sizes.num_domains; ++other)
          if (other != d) {
            const Status added = nics_[d][nic]->add_peer(other, nics_[other][nic]->address());
            EXPECT_TRUE(added.ok()) << added.message();
          }
  }

  int size() const { return static_cast<int>(ranks_.size()); }
  MeshRank& rank(int domain) { return *ranks_[domain]; }
  const NicAddress& address(int domain) const { return nics_[domain][0]->address(); }
  std::vector<Transport*> transports(int domain) {
    std::vector<Transport*> transports;
    for (const auto& nic : nics_[domain]) transports.push_back(nic.get());
    return transports;
  }
  void close(int domain) { nics_[domain].clear(); }

 private:
  std::vector<std::unique_ptr<MeshRank>> ranks_;
  std::vector<std::vector<std::unique_ptr<Transport>>> nics_;  // [domains][nics]; they go first
};

}  // namespace hep
