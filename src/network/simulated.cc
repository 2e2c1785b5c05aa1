// SPDX-License-Identifier: Apache-2.0
#include "network/simulated.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

#include "base/blocked_signals.h"
#include "base/identity.h"
#include "base/thread_annotations.h"
#include "network/sections.h"

namespace hep {
namespace {

using Clock = std::chrono::steady_clock;
using EndpointId = uint64_t;

// Of the fabric that communicators share.
constexpr int kSharedDelayUs = 200;
constexpr int kSharedRefusals = 125;  // of a thousand writes

enum Code : int { kLost = 1, kOutsideOfSections };

// What stands in NicAddress::bytes.
struct SimulatedAddress {
  uint64_t process, fabric;
  EndpointId id;
};

SimulatedAddress read_address(const NicAddress& address) {
  SimulatedAddress read{};
  std::memcpy(&read, address.bytes, sizeof read);
  return read;
}

struct Endpoint {
  std::vector<NetworkSection> sections;
  std::deque<NetworkEvent> events;
  bool lost = false;
};

struct Flight {
  EndpointId source, destination;
  const char* from;
  NetworkWrite write;
  Clock::time_point due;
};

}  // namespace

// What lies between endpoints. Whatever happens to a write happens under one mutex, the copy as
// well: an endpoint may go, and its memory with it.
class SimulatedFabric::Wires {
 public:
  explicit Wires(const SimulatedOptions& options) : options_(options), random_(options.seed) {}

  ~Wires() {
    if (!thread_.joinable()) return;
    {
      const Lock lock(mutex_);
      stopping_ = true;
      changed_.notify_all();
    }
    thread_.join();
  }

  Status start() {
    const BlockedSignals blocked;
    try {
      thread_ = std::thread([this] { run(); });
    } catch (const std::system_error& failure) {
      return error(hepErrorSystem, "no thread could be started for the simulated network: %s",
                   failure.what());
    }
    return Status();
  }

  EndpointId add(const std::vector<NetworkSection>& sections) HEP_EXCLUDES(mutex_) {
    const Lock lock(mutex_);
    endpoints_[++last_id_].sections = sections;
    return last_id_;
  }

  void remove(EndpointId id) HEP_EXCLUDES(mutex_) {
    const Lock lock(mutex_);
    give_up(id);
    endpoints_.erase(id);
  }

  void lose(EndpointId id) HEP_EXCLUDES(mutex_) {
    const Lock lock(mutex_);
    give_up(id);
    const auto found = endpoints_.find(id);
    if (found != endpoints_.end()) found->second.lost = true;
  }

  void cut(EndpointId a, EndpointId b, bool is_cut) HEP_EXCLUDES(mutex_) {
    const Lock lock(mutex_);
    const auto pair = std::minmax(a, b);
    if (is_cut)
      cuts_.insert(pair);
    else
      cuts_.erase(pair);
    changed_.notify_all();
  }

  Transport::Outcome write(EndpointId source, EndpointId destination, const NetworkWrite& write,
                           int* code) HEP_EXCLUDES(mutex_) {
    const Lock lock(mutex_);
    if (draw(1000) < options_.refused_per_thousand) return Transport::Outcome::kBusy;
    const auto found = endpoints_.find(destination);
    const char* const from = find(endpoints_[source], write.from, write.bytes);
    *code = found == endpoints_.end() || found->second.lost ? kLost : kOutsideOfSections;
    if (*code == kLost || from == nullptr) return Transport::Outcome::kFailed;
    const auto delay = std::chrono::microseconds(draw(options_.max_delay_us + 1));
    flights_.push_back({source, destination, from, write, Clock::now() + delay});
    changed_.notify_all();
    return Transport::Outcome::kTaken;
  }

  int poll(EndpointId id, NetworkEvent* events, int max) HEP_EXCLUDES(mutex_) {
    const Lock lock(mutex_);
    std::deque<NetworkEvent>& waiting = endpoints_[id].events;
    const int count = std::min(max, static_cast<int>(waiting.size()));
    std::copy_n(waiting.begin(), count, events);
    waiting.erase(waiting.begin(), waiting.begin() + count);
    return count;
  }

 private:
  void run() HEP_EXCLUDES(mutex_) {
    Lock lock(mutex_);
    while (!stopping_) {
      Clock::time_point next = Clock::time_point::max();
      const auto flight = find_due(&next);
      if (flight != flights_.end())
        land(flight);
      else if (next == Clock::time_point::max())
        changed_.wait(lock.native());
      else
        changed_.wait_until(lock.native(), next);
    }
  }

  int draw(int end) HEP_REQUIRES(mutex_) {
    return end <= 1 ? 0 : std::uniform_int_distribution<int>(0, end - 1)(random_);
  }

  // A flight that is due; otherwise *next is when to look again. One that keeps its order is not
  // due before those of its pair that began earlier.
  std::deque<Flight>::iterator find_due(Clock::time_point* next) HEP_REQUIRES(mutex_) {
    const Clock::time_point now = Clock::now();
    std::set<std::pair<EndpointId, EndpointId>> waiting;
    std::vector<std::deque<Flight>::iterator> due;
    for (auto flight = flights_.begin(); flight != flights_.end(); ++flight) {
      const auto way = std::make_pair(flight->source, flight->destination);
      if (cuts_.count(std::minmax(flight->source, flight->destination)) > 0) continue;
      if (!options_.reorders && !waiting.insert(way).second) continue;
      if (flight->due <= now)
        due.push_back(flight);
      else
        *next = std::min(*next, flight->due);
    }
    if (due.empty()) return flights_.end();
    return due[options_.reorders ? draw(static_cast<int>(due.size())) : 0];
  }

  void land(std::deque<Flight>::iterator at) HEP_REQUIRES(mutex_) {
    const Flight flight = *at;
    flights_.erase(at);
    Endpoint& destination = endpoints_[flight.destination];
    const NetworkWrite& write = flight.write;
    char* const to = find(destination, write.to, write.bytes);
    if (to == nullptr) return end(flight, NetworkEvent::Kind::kFailed, kOutsideOfSections);
    if (write.bytes > 0) std::memcpy(to, flight.from, write.bytes);
    destination.events.push_back({NetworkEvent::Kind::kArrived, 0, write.immediate, 0});
    end(flight, NetworkEvent::Kind::kCompleted, 0);
  }

  void end(const Flight& flight, NetworkEvent::Kind kind, int code) HEP_REQUIRES(mutex_) {
    endpoints_[flight.source].events.push_back({kind, flight.write.tag, 0, code});
  }

  // An endpoint is gone: what it has under way is dropped, what is under way to it fails.
  void give_up(EndpointId id) HEP_REQUIRES(mutex_) {
    std::deque<Flight> kept;
    for (const Flight& flight : flights_) {
      if (flight.source == id) continue;
      if (flight.destination == id)
        end(flight, NetworkEvent::Kind::kFailed, kLost);
      else
        kept.push_back(flight);
    }
    flights_ = std::move(kept);
  }

  static char* find(const Endpoint& endpoint, uint64_t offset, uint64_t bytes) {
    const int section = find_section(endpoint.sections, offset, bytes);
    if (section < 0) return nullptr;
    const NetworkSection& found = endpoint.sections[section];
    return static_cast<char*>(found.address) + (bytes == 0 ? 0 : offset - found.offset);
  }

  const SimulatedOptions options_;
  std::thread thread_;
  Mutex mutex_;
  std::condition_variable changed_;
  std::mt19937_64 random_ HEP_GUARDED_BY(mutex_);
  std::map<EndpointId, Endpoint> endpoints_ HEP_GUARDED_BY(mutex_);
  std::deque<Flight> flights_ HEP_GUARDED_BY(mutex_);
  std::set<std::pair<EndpointId, EndpointId>> cuts_ HEP_GUARDED_BY(mutex_);
  EndpointId last_id_ HEP_GUARDED_BY(mutex_) = 0;
  bool stopping_ HEP_GUARDED_BY(mutex_) = false;
};

class SimulatedTransport final : public Transport {
 public:
  SimulatedTransport(std::shared_ptr<SimulatedFabric> fabric,
                     const std::vector<NetworkSection>& sections)
      : fabric_(std::move(fabric)), id_(fabric_->wires_->add(sections)) {
    const SimulatedAddress own{process_identity(), reinterpret_cast<uint64_t>(fabric_.get()), id_};
    std::snprintf(address_.nic, sizeof address_.nic, "simulated%llu",
                  static_cast<unsigned long long>(id_));
    address_.num_bytes = sizeof own;
    std::memcpy(address_.bytes, &own, sizeof own);
  }

  ~SimulatedTransport() override { fabric_->wires_->remove(id_); }

  const NicAddress& address() const override { return address_; }

  Status add_peer(int peer, const NicAddress& address) override {
    const SimulatedAddress own = read_address(address_), theirs = read_address(address);
    if (theirs.process != own.process || theirs.fabric != own.fabric)
      return error(hepErrorNetwork,
                   "the simulated network connects ranks of one process, and %s is in another one",
                   address.nic);
    peers_[peer] = theirs.id;
    return Status();
  }

  Outcome write(const NetworkWrite& write, int* code) override {
    return fabric_->wires_->write(id_, peers_[write.peer], write, code);
  }

  int poll(NetworkEvent* events, int max) override {
    return fabric_->wires_->poll(id_, events, max);
  }

  std::string text_of(int code) const override {
    return code == kLost ? "the endpoint is gone" : "the write is outside of the sections";
  }

 private:
  const std::shared_ptr<SimulatedFabric> fabric_;
  const EndpointId id_;
  NicAddress address_{};
  std::map<int, EndpointId> peers_;
};

SimulatedFabric::SimulatedFabric(std::unique_ptr<Wires> wires) : wires_(std::move(wires)) {}
SimulatedFabric::~SimulatedFabric() = default;

Status SimulatedFabric::create(const SimulatedOptions& options,
                               std::shared_ptr<SimulatedFabric>* out) {
  auto wires = std::make_unique<Wires>(options);
  HEP_TRY(wires->start());
  out->reset(new SimulatedFabric(std::move(wires)));
  return Status();
}

Status SimulatedFabric::of_process(uint64_t seed, std::shared_ptr<SimulatedFabric>* out) {
  // Never destroyed: a communicator may be created at exit.
  struct Shared {
    Mutex mutex;
    std::map<uint64_t, std::weak_ptr<SimulatedFabric>> fabrics HEP_GUARDED_BY(mutex);  // by seed
  };
  static Shared* const shared = new Shared;
  const Lock lock(shared->mutex);
  *out = shared->fabrics[seed].lock();
  if (*out) return Status();
  SimulatedOptions options;
  if (seed != 0) options = {seed, kSharedDelayUs, true, kSharedRefusals};
  HEP_TRY(create(options, out));
  shared->fabrics[seed] = *out;
  return Status();
}

std::unique_ptr<Transport> SimulatedFabric::open(const std::shared_ptr<SimulatedFabric>& fabric,
                                                 const std::vector<NetworkSection>& sections) {
  return std::make_unique<SimulatedTransport>(fabric, sections);
}

void SimulatedFabric::lose(const NicAddress& endpoint) { wires_->lose(read_address(endpoint).id); }

void SimulatedFabric::cut(const NicAddress& a, const NicAddress& b, bool is_cut) {
  wires_->cut(read_address(a).id, read_address(b).id, is_cut);
}

}  // namespace hep
