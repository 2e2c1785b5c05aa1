// SPDX-License-Identifier: Apache-2.0
#include "network/engine.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/status.h"

namespace hep {
namespace {

constexpr int kDescriptorsAStep = 64;  // of a lane, so that no lane keeps the others waiting
constexpr int kEventsAPoll = 64;

// Polls of a transport until it is taken for empty, although its peers may go on writing.
constexpr int kMaxPolls = 1024;

// An error of a write may come before the news that its peer has left or is gone.
constexpr std::chrono::milliseconds kSuspicion{1000};

void store_release(uint64_t* word, uint64_t value) {
  __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

// One thread adds, others read.
void add(std::atomic<uint64_t>& count, uint64_t more) {
  count.store(count.load(std::memory_order_relaxed) + more, std::memory_order_relaxed);
}

}  // namespace

ProxyEngine::ProxyEngine(std::vector<Transport*> transports, ProxyPlan plan,
                         ProxyListener& listener)
    : transports_(std::move(transports)),
      plan_(std::move(plan)),
      listener_(listener),
      streams_(plan_.lanes.size() * plan_.num_domains * kWriteKinds),
      peers_(plan_.num_domains),
      writes_(plan_.num_domains * kTagsOfAPeer) {
  for (const ProxyPlan::LanePlan& lane : plan_.lanes)
    rings_.emplace_back(lane.ring, lane.ring_slots);
}

bool ProxyEngine::step() {
  bool worked = plan_.chore && plan_.chore();
  for (size_t lane = 0; lane < rings_.size(); ++lane)
    worked |= take_descriptors(static_cast<int>(lane));
  for (int domain = 0; domain < plan_.num_domains; ++domain) worked |= begin_writes(domain);
  for (Transport* transport : transports_) worked |= poll(*transport) > 0;
  if (num_suspects_ > 0) judge_suspects();
  return worked;
}

void ProxyEngine::poll_until_empty() {
  for (Transport* transport : transports_)
    for (int polls = 0; polls < kMaxPolls && poll(*transport) > 0; ++polls) {
    }
}

void ProxyEngine::peer_gone(int domain) {
  Peer& peer = peers_[domain];
  if (std::exchange(peer.gone, true)) return;
  for (uint64_t left = kPeerTags & ~peer.free_tags; left != 0; left &= left - 1) {
    Write& write = writes_[domain * kTagsOfAPeer + __builtin_ctzll(left)];
    complete(write.lane, write.kind, domain, write.number);
    write.is_complete = true;
  }
}

void ProxyEngine::drop_writes() { dropping_ = true; }

void ProxyEngine::fail(int rank, const std::string& cause) {
  drop_writes();
  if (std::exchange(failed_, true)) return;
  listener_.network_failed(rank, cause);
}

// -------------------------------------------------------------------------------------------
// writes

bool ProxyEngine::take_descriptors(int lane) {
  WriteDescriptor write{};
  int taken = 0;
  for (; taken < kDescriptorsAStep && rings_[lane].take(&write); ++taken) {
    if (dropping_ || !is_legal(lane, write)) continue;
    const int domain = static_cast<int>(write.domain);
    peers_[domain].pending.push_back({lane, stream(lane, write.kind, domain).begun++, write});
  }
  return taken > 0;
}

bool ProxyEngine::is_legal(int lane, const WriteDescriptor& write) {
  const int domain = static_cast<int>(write.domain), kind = static_cast<int>(write.kind);
  if (domain < plan_.num_domains && domain != plan_.domain && write.kind < WriteKind::kHello &&
      plan_.lanes[lane].channels[kind].holds(write))
    return true;
  const Status bad = error(
      hepErrorInternal,
      "lane %d asks for a write that it does not have: kind %d, domain %d, slot %u, target %u, "
      "%u bytes",
      lane, kind, domain, write.slot, write.target, write.bytes);
  fail(-1, bad.message());
  return false;
}

// The writes to a peer begin in their order, so one that the transport does not take holds up those
// behind it, and no others.
bool ProxyEngine::begin_writes(int domain) {
  Peer& peer = peers_[domain];
  bool worked = false;
  if (dropping_) peer.pending.clear();
  while (!peer.pending.empty() && !peer.is_suspect) {
    const Pending& next = peer.pending.front();
    if (peer.gone)
      complete(next.lane, next.write.kind, domain, next.number);
    else if (peer.free_tags == 0 || begin_write(domain, next) != Transport::Outcome::kTaken)
      break;
    peer.pending.pop_front();
    worked = true;
  }
  return worked;
}

Transport::Outcome ProxyEngine::begin_write(int domain, const Pending& next) {
  Peer& peer = peers_[domain];
  const int bit = __builtin_ctzll(peer.free_tags);
  const uint32_t tag = domain * kTagsOfAPeer + bit;
  const Channel& channel = plan_.lanes[next.lane].channels[static_cast<int>(next.write.kind)];
  const auto own = static_cast<uint32_t>(plan_.domain), number = static_cast<uint32_t>(next.number);
  const Immediate immediate{next.write.kind, static_cast<uint32_t>(next.lane), own, number};
  Transport& transport = *transports_[next.number % transports_.size()];
  int code = 0;
  const Transport::Outcome outcome = transport.write(
      {domain, channel.source_of(next.write, own), channel.destination_of(next.write, own),
       next.write.bytes, immediate.pack(), tag},
      &code);
  if (outcome == Transport::Outcome::kTaken) {
    peer.free_tags &= peer.free_tags - 1;
    writes_[tag] = {next.lane, next.write.kind, next.number, false};
    add(counts_.writes, 1);
    add(counts_.bytes, next.write.bytes);
  } else if (outcome == Transport::Outcome::kBusy) {
    add(counts_.refusals, 1);
  } else {
    suspect(domain, transport.text_of(code));
  }
  return outcome;
}

// -------------------------------------------------------------------------------------------
// events

int ProxyEngine::poll(Transport& transport) {
  std::array<NetworkEvent, kEventsAPoll> events;
  const int count = transport.poll(events.data(), kEventsAPoll);
  for (int i = 0; i < count; ++i) handle(transport, events[i]);
  return count;
}

void ProxyEngine::handle(Transport& transport, const NetworkEvent& event) {
  switch (event.kind) {
    case NetworkEvent::Kind::kCompleted: return end_write(event.tag);
    case NetworkEvent::Kind::kFailed:
      suspect(static_cast<int>(event.tag / kTagsOfAPeer), transport.text_of(event.code));
      return end_write(event.tag);
    case NetworkEvent::Kind::kArrived: return arrive(event.immediate);
    case NetworkEvent::Kind::kBroken: return fail(-1, transport.text_of(event.code));
  }
}

// A write that has failed counts as completed: either its peer is gone, and nobody misses it, or
// the whole network is about to fail.
void ProxyEngine::end_write(uint32_t tag) {
  if (tag % kTagsOfAPeer >= kHelloTag) return;
  const int domain = static_cast<int>(tag / kTagsOfAPeer);
  const Write& write = writes_[tag];
  peers_[domain].free_tags |= uint64_t{1} << tag % kTagsOfAPeer;
  if (!write.is_complete) complete(write.lane, write.kind, domain, write.number);
}

void ProxyEngine::complete(int lane, WriteKind kind, int domain, uint64_t number) {
  ConsecutiveCount& completed = stream(lane, kind, domain).completed;
  completed.add(static_cast<uint32_t>(number));
  store_release(&inbox(lane, domain).completed[static_cast<int>(kind)], completed.count());
}

void ProxyEngine::arrive(uint32_t bits) {
  const Immediate immediate = Immediate::unpack(bits);
  const int lane = static_cast<int>(immediate.lane), domain = static_cast<int>(immediate.domain);
  add(counts_.arrivals, 1);
  if (domain >= plan_.num_domains || domain == plan_.domain ||
      immediate.lane >= plan_.lanes.size() || immediate.kind >= WriteKind::kHello ||
      !stream(lane, immediate.kind, domain).arrived.add(immediate.number)) {
    const Status bad = error(
        hepErrorNetwork, "a write has arrived that no rank was to make: immediate 0x%08x", bits);
    return fail(-1, bad.message());
  }
  store_release(&inbox(lane, domain).arrived[static_cast<int>(immediate.kind)],
                stream(lane, immediate.kind, domain).arrived.count());
}

// -----------------------------------------------------------------------------------------
// suspects

void ProxyEngine::suspect(int domain, const std::string& cause) {
  Peer& peer = peers_[domain];
  if (peer.gone || std::exchange(peer.is_suspect, true)) return;
  peer.suspect_until = Clock::now() + kSuspicion;
  peer.suspicion = cause;
  ++num_suspects_;
}

void ProxyEngine::judge_suspects() {
  const Clock::time_point now = Clock::now();
  for (int domain = 0; domain < plan_.num_domains; ++domain) {
    Peer& peer = peers_[domain];
    if (!peer.is_suspect || (!peer.gone && now < peer.suspect_until)) continue;
    peer.is_suspect = false;
    --num_suspects_;
    if (!peer.gone) fail(plan_.rail[domain], peer.suspicion);
  }
}

}  // namespace hep
