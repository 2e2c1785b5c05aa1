// SPDX-License-Identifier: Apache-2.0
// The work of the proxy, step by step: from descriptors to writes, and from what transports tell to
// the counts in the inboxes. One thread uses it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "network/consecutive.h"
#include "network/descriptor.h"
#include "network/ring.h"
#include "network/transport.h"

namespace hep {

// What the backend hands over. The memory outlives the proxy; it is zero at first.
struct ProxyPlan {
  struct LanePlan {
    PackedDescriptor* ring;
    uint32_t ring_slots;  // a power of two, at most kMaxRingSlots
    Channel channels[kWriteKinds];
    Inbox* inboxes;  // [domains]
  };

  int rank, domain, num_domains;
  std::vector<int> rail;        // [domains] the rank of each domain that this rank writes to
  std::vector<LanePlan> lanes;  // at most kMaxNetworkLanes
  // Work of the backend, which the proxy's thread does between its own steps; may be empty. It
  // waits for nothing, and returns whether there was anything to do.
  std::function<bool()> chore;
};

class ProxyListener {
 public:
  virtual ~ProxyListener() = default;

  // The network has failed: to `rank`, or as a whole if that is -1. Called once at most, by the
  // thread of the proxy, which makes no more writes but counts what still arrives.
  virtual void network_failed(int rank, const std::string& cause) = 0;
};

class ProxyEngine {
 public:
  // What it has done so far.
  struct Counts {
    std::atomic<uint64_t> writes{0}, bytes{0}, refusals{0}, arrivals{0};
  };

  // Write number n of a stream goes over transport n mod count.
  ProxyEngine(std::vector<Transport*> transports, ProxyPlan plan, ProxyListener& listener);

  // Takes descriptors, begins writes, and polls each transport once. Whether there was anything to
  // do.
  bool step();

  // Counts all that has arrived by now.
  void poll_until_empty();

  // Takes writes to this domain for completed, those under way and those to come: nobody misses
  // them, and their completions may never come. Errors of them do not count.
  void peer_gone(int domain);

  // From now on no write is made.
  void drop_writes();

  // Tells the listener, once.
  void fail(int rank, const std::string& cause);

  const Counts& counts() const { return counts_; }

 private:
  using Clock = std::chrono::steady_clock;

  // A bit for each tag of a peer. The writes of the creation may still have theirs.
  static constexpr uint64_t kPeerTags = (uint64_t{1} << kHelloTag) - 1;

  struct Stream {
    uint64_t begun = 0;
    ConsecutiveCount completed, arrived;
  };

  struct Pending {
    int lane;
    uint64_t number;
    WriteDescriptor write;
  };

  // The rank of another domain.
  struct Peer {
    std::deque<Pending> pending;
    uint64_t free_tags = kPeerTags;
    bool gone = false;
    bool is_suspect = false;  // a write to it has failed, and it may turn out to be gone
    Clock::time_point suspect_until;
    std::string suspicion;
  };

  // A write under way, by tag.
  struct Write {
    int lane = 0;
    WriteKind kind{};
    uint64_t number = 0;
    bool is_complete = false;  // although the transport still has it
  };

  bool take_descriptors(int lane);
  bool is_legal(int lane, const WriteDescriptor& write);
  bool begin_writes(int domain);
  Transport::Outcome begin_write(int domain, const Pending& next);
  int poll(Transport& transport);
  void handle(Transport& transport, const NetworkEvent& event);
  void end_write(uint32_t tag);
  void complete(int lane, WriteKind kind, int domain, uint64_t number);
  void arrive(uint32_t bits);
  void suspect(int domain, const std::string& cause);
  void judge_suspects();

  Stream& stream(int lane, WriteKind kind, int domain) {
    return streams_[(lane * plan_.num_domains + domain) * kWriteKinds + static_cast<int>(kind)];
  }
  Inbox& inbox(int lane, int domain) { return plan_.lanes[lane].inboxes[domain]; }

  const std::vector<Transport*> transports_;
  const ProxyPlan plan_;
  ProxyListener& listener_;
  std::vector<RingReader> rings_;  // [lanes]
  std::vector<Stream> streams_;    // [lanes][domains][kinds]
  std::vector<Peer> peers_;        // [domains]
  std::vector<Write> writes_;      // [domains * kTagsOfAPeer]
  int num_suspects_ = 0;
  bool dropping_ = false;
  bool failed_ = false;
  Counts counts_;
};

}  // namespace hep
