// SPDX-License-Identifier: Apache-2.0
// The proxy over the simulated network: the same bytes in whatever order they come, and what
// becomes of peers that leave, die or cannot be reached.
#include "network/proxy.h"

#include <gtest/gtest.h>

#include <array>
#include <condition_variable>
#include <string>
#include <thread>
#include <vector>

#include "base/fault_point.h"
#include "network/simulated.h"
#include "unit/network/mesh.h"

namespace hep {
namespace {

constexpr int kPollUs = 50;

std::shared_ptr<SimulatedFabric> simulated(const SimulatedOptions& options) {
  std::shared_ptr<SimulatedFabric> fabric;
  EXPECT_TRUE(SimulatedFabric::create(options, &fabric).ok());
  return fabric;
}

OpenNic nics_of(const std::shared_ptr<SimulatedFabric>& fabric) {
  return [fabric](const std::vector<NetworkSection>& sections) {
    return SimulatedFabric::open(fabric, sections);
  };
}

// The ranks' engines, all driven by the thread of the test.
class Engines {
 public:
  explicit Engines(Mesh& mesh) : mesh_(mesh) {
    for (int d = 0; d < mesh.size(); ++d)
      engines_.push_back(std::make_unique<ProxyEngine>(mesh.transports(d), mesh.rank(d).plan(),
                                                       mesh.rank(d).listener()));
  }

  ProxyEngine& operator[](int domain) { return *engines_[domain]; }

  void step() {
    bool worked = false;
    for (int d = 0; d < mesh_.size(); ++d) {
      mesh_.rank(d).work();
      worked |= engines_[d]->step();
    }
    if (!worked) ::sched_yield();
  }

  // Until all have all.
  void finish() {
    for (int d = 0; d < mesh_.size(); ++d)
      while (!mesh_.rank(d).is_done() && mesh_.rank(d).listener().count() == 0) step();
  }

 private:
  Mesh& mesh_;
  std::vector<std::unique_ptr<ProxyEngine>> engines_;
};

void expect_right(Mesh& mesh, const std::string& what) {
  for (int d = 0; d < mesh.size(); ++d) {
    EXPECT_TRUE(mesh.rank(d).is_done()) << what << ", domain " << d;
    EXPECT_EQ(mesh.rank(d).num_wrong(), 0) << what << ", domain " << d;
    EXPECT_EQ(mesh.rank(d).listener().count(), 0) << mesh.rank(d).listener().cause();
  }
}

struct Weather {
  const char* name;
  int max_delay_us;
  bool reorders;
  int refused_per_thousand;
  uint64_t seeds;
};

class ProxyWeather : public ::testing::TestWithParam<Weather> {};

TEST_P(ProxyWeather, BringsTheSameBytesWithEverySeed) {
  const Weather& weather = GetParam();
  for (uint64_t seed = 1; seed <= weather.seeds; ++seed) {
    MeshSizes sizes;
    sizes.slots = 1 + seed % 5;
    sizes.num_nics = 1 + static_cast<int>(seed % 2);
    Mesh mesh(sizes, nics_of(simulated({seed, weather.max_delay_us, weather.reorders,
                                        weather.refused_per_thousand})));
    Engines engines(mesh);
    engines.finish();
    expect_right(mesh, weather.name + (", seed " + std::to_string(seed)));
    if (HasFailure()) return;
  }
}

// The sanitizers make everything ten times as slow.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr uint64_t kSeeds = 5;
#else
constexpr uint64_t kSeeds = 30;
#endif

INSTANTIATE_TEST_SUITE_P(Simulated, ProxyWeather,
                         ::testing::Values(Weather{"InOrder", 0, false, 0, 2 * kSeeds},
                                           Weather{"Reordered", 0, true, 0, 5 * kSeeds},
                                           Weather{"Delayed", 100, false, 0, kSeeds},
                                           Weather{"DelayedAndReordered", 100, true, 0, 4 * kSeeds},
                                           Weather{"Busy", 0, true, 500, 5 * kSeeds},
                                           Weather{"All", 50, true, 300, 3 * kSeeds}),
                         [](const auto& info) { return std::string(info.param.name); });

// Numbers of a stream come again after 256, and the ring of descriptors laps.
TEST(ProxyEngine, GoesOnWhenNumbersComeAgain) {
  MeshSizes sizes;
  sizes.num_domains = 2;
  sizes.num_lanes = 2;
  sizes.num_chunks = 1500;
  sizes.slots = kMaxInFlight;
  Mesh mesh(sizes, nics_of(simulated({7, 0, true, 100})));
  Engines engines(mesh);
  engines.finish();
  expect_right(mesh, "1500 chunks");
}

TEST(ProxyEngine, CountsItsWritesAndTheirBytes) {
  MeshSizes sizes;
  sizes.num_domains = 2;
  Mesh mesh(sizes, nics_of(simulated({})));
  Engines engines(mesh);
  engines.finish();
  while (engines[0].counts().arrivals < 3 * sizes.num_chunks) engines.step();
  EXPECT_EQ(engines[0].counts().writes, 3 * sizes.num_chunks);  // rows, parts, credits
  EXPECT_EQ(engines[0].counts().bytes, 2 * sizes.num_chunks * sizes.chunk);
  EXPECT_EQ(engines[0].counts().arrivals, 3 * sizes.num_chunks);  // and no more
}

// A peer that takes nothing holds up its own writes alone.
TEST(ProxyEngine, ServesTheOtherPeersOfOneThatIsCutOff) {
  const auto fabric = simulated({3, 0, true, 0});
  MeshSizes sizes;
  sizes.num_chunks = 300;
  Mesh mesh(sizes, nics_of(fabric));
  fabric->cut(mesh.address(0), mesh.address(2), true);
  Engines engines(mesh);
  const auto arrived = [&](int at, int from) {
    return load(mesh.rank(at).inbox(0, from).arrived_of(WriteKind::kRows));
  };
  while (arrived(1, 0) < 300 || arrived(0, 1) < 300 || arrived(1, 2) < 300 || arrived(2, 1) < 300)
    engines.step();
  EXPECT_EQ(arrived(0, 2), 0u);
  EXPECT_EQ(arrived(2, 0), 0u);
  EXPECT_EQ(mesh.rank(0).listener().count(), 0);

  fabric->cut(mesh.address(0), mesh.address(2), false);
  engines.finish();
  expect_right(mesh, "after the cut");
}

TEST(ProxyEngine, NamesThePeerThatItCannotWriteTo) {
  const auto fabric = simulated({});
  MeshSizes sizes;
  sizes.num_domains = 2;
  Mesh mesh(sizes, nics_of(fabric));
  Engines engines(mesh);
  fabric->lose(mesh.address(1));
  mesh.rank(0).push_rows(1, 2);
  while (mesh.rank(0).listener().count() == 0) engines[0].step();
  EXPECT_EQ(mesh.rank(0).listener().rank(), 10);
  EXPECT_EQ(mesh.rank(0).listener().cause(), "the endpoint is gone");
}

// It fails with a write under way as well as with one that begins later, and the others go on.
TEST(ProxyEngine, ForgivesErrorsToAPeerThatIsGone) {
  const auto fabric = simulated({});
  Mesh mesh({}, nics_of(fabric));
  Engines engines(mesh);
  fabric->cut(mesh.address(0), mesh.address(1), true);
  mesh.rank(0).push_rows(1, 2);
  engines[0].step();
  fabric->lose(mesh.address(1));
  engines[0].step();
  engines[0].peer_gone(1);
  mesh.rank(0).push_rows(1, 2);
  mesh.rank(0).push_rows(2, 3);
  const auto completed = [&](int other) {
    return load(mesh.rank(0).inbox(0, other).completed_of(WriteKind::kRows));
  };
  while (completed(1) < 4 || completed(2) < 3) engines[0].step();
  EXPECT_EQ(mesh.rank(0).listener().count(), 0) << mesh.rank(0).listener().cause();
}

// The transport never tells of them.
TEST(ProxyEngine, TakesWritesToAPeerThatIsGoneForCompleted) {
  const auto fabric = simulated({});
  MeshSizes sizes;
  sizes.slots = kMaxInFlight;
  Mesh mesh(sizes, nics_of(fabric));
  Engines engines(mesh);
  fabric->cut(mesh.address(0), mesh.address(1), true);
  const uint64_t* const completed = mesh.rank(0).inbox(0, 1).completed_of(WriteKind::kRows);
  mesh.rank(0).push_rows(1, 100);  // more than may be under way
  while (engines[0].step()) {
  }
  EXPECT_EQ(load(completed), 0u);
  engines[0].peer_gone(1);
  mesh.rank(0).push_rows(1, 10);
  while (engines[0].step()) {
  }
  EXPECT_EQ(load(completed), 110u);

  // News that come late change nothing, although the low bits of their numbers come again.
  mesh.rank(0).push_rows(1, 100);
  while (engines[0].step()) {
  }
  EXPECT_EQ(load(completed), 210u);
  fabric->cut(mesh.address(0), mesh.address(1), false);
  std::array<NetworkEvent, 64> arrivals;
  for (int count = 0; count < static_cast<int>(kHelloTag);)
    count += mesh.transports(1)[0]->poll(arrivals.data(), static_cast<int>(arrivals.size()));
  while (engines[0].step()) {
  }
  mesh.rank(0).push_rows(1, 100);
  while (engines[0].step()) {
  }
  EXPECT_EQ(load(completed), 310u);
  EXPECT_EQ(mesh.rank(0).listener().count(), 0) << mesh.rank(0).listener().cause();
}

TEST(ProxyEngine, RefusesADescriptorOutsideOfItsChannels) {
  const WriteDescriptor bad[] = {
      {WriteKind::kRows, 0, 0, 0, 16},    // to its own domain
      {WriteKind::kRows, 3, 0, 0, 16},    // to a domain that does not exist
      {WriteKind::kRows, 1, 9, 0, 16},    // from a slot
      {WriteKind::kRows, 1, 0, 9, 16},    // to a slot
      {WriteKind::kRows, 1, 0, 0, 4096},  // too long
      {WriteKind::kRecords, 1, 0, 0, 16}, {WriteKind::kHello, 1, 0, 0, 0},
  };
  for (const WriteDescriptor& write : bad) {
    Mesh mesh({}, nics_of(simulated({})));
    Engines engines(mesh);
    mesh.rank(0).push(0, write);
    engines[0].step();
    EXPECT_EQ(mesh.rank(0).listener().count(), 1);
    EXPECT_EQ(mesh.rank(0).listener().rank(), -1);
    EXPECT_NE(mesh.rank(0).listener().cause().find("lane 0 asks for a write"), std::string::npos)
        << mesh.rank(0).listener().cause();
    EXPECT_EQ(engines[0].counts().writes, 0u);
  }
}

TEST(ProxyEngine, RefusesAWriteThatNoRankMakes) {
  const uint32_t bad[] = {
      Immediate{WriteKind::kRows, 0, 0, 0}.pack(),    // of its own domain
      Immediate{WriteKind::kRows, 0, 3, 0}.pack(),    // of a domain that does not exist
      Immediate{WriteKind::kRows, 5, 1, 0}.pack(),    // of a lane that does not exist
      Immediate{WriteKind::kHello, 0, 1, 0}.pack(),   // of the creation
      Immediate{WriteKind::kRows, 0, 1, 200}.pack(),  // with a number that cannot be under way
      ~0u,
  };
  for (const uint32_t immediate : bad) {
    Mesh mesh({}, nics_of(simulated({})));
    Engines engines(mesh);
    int code = 0;
    ASSERT_EQ(mesh.transports(1)[0]->write({0, 0, 0, 0, immediate, 0}, &code),
              Transport::Outcome::kTaken);
    while (mesh.rank(0).listener().count() == 0) engines[0].step();
    EXPECT_NE(mesh.rank(0).listener().cause().find("a write has arrived that no rank was to make"),
              std::string::npos);
  }
}

// More than one poll tells of.
TEST(ProxyEngine, CountsAllThatHasArrivedBeforeItSettles) {
  MeshSizes sizes;
  sizes.slots = kMaxInFlight;
  Mesh mesh(sizes, nics_of(simulated({})));
  Engines engines(mesh);
  mesh.rank(1).push_rows(0, kMaxInFlight);
  mesh.rank(2).push_rows(0, kMaxInFlight);
  for (const int writer : {1, 2})
    while (load(mesh.rank(writer).inbox(0, 0).completed_of(WriteKind::kRows)) < kMaxInFlight)
      engines[writer].step();
  engines[0].poll_until_empty();
  EXPECT_EQ(load(mesh.rank(0).inbox(0, 1).arrived_of(WriteKind::kRows)), 0u + kMaxInFlight);
  EXPECT_EQ(load(mesh.rank(0).inbox(0, 2).arrived_of(WriteKind::kRows)), 0u + kMaxInFlight);
}

TEST(ProxyEngine, MakesNoWriteAfterADrop) {
  Mesh mesh({}, nics_of(simulated({})));
  Engines engines(mesh);
  engines[0].drop_writes();
  mesh.rank(0).push_rows(1, 4);
  EXPECT_TRUE(engines[0].step());
  EXPECT_FALSE(engines[0].step());
  EXPECT_EQ(engines[0].counts().writes, 0u);
}

// ------------------------------------------------------------------------------------- the thread

// The ranks' proxies, each with its thread.
class Proxies {
 public:
  explicit Proxies(Mesh& mesh, int poll_us = kPollUs) {
    for (int d = 0; d < mesh.size(); ++d) {
      proxies_.push_back(std::make_unique<Proxy>(mesh.transports(d), mesh.rank(d).plan(),
                                                 mesh.rank(d).listener(), poll_us));
      EXPECT_TRUE(proxies_[d]->start().ok());
    }
  }

  Proxy& operator[](int domain) { return *proxies_[domain]; }
  void end(int domain) { proxies_[domain].reset(); }

 private:
  std::vector<std::unique_ptr<Proxy>> proxies_;
};

void finish(Mesh& mesh) {
  for (int d = 0; d < mesh.size(); ++d)
    while (!mesh.rank(d).is_done() && mesh.rank(d).listener().count() == 0) {
      for (int other = 0; other < mesh.size(); ++other) mesh.rank(other).work();
      ::sched_yield();
    }
}

TEST(Proxy, BringsTheSameBytesFromThreadToThread) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    MeshSizes sizes;
    sizes.num_lanes = 2;
    sizes.num_nics = 2;
    Mesh mesh(sizes, nics_of(simulated({seed, 20, true, 100})));
    Proxies proxies(mesh);
    finish(mesh);
    expect_right(mesh, "seed " + std::to_string(seed));
  }
}

// The sleep is longer than the test may take.
TEST(Proxy, IsWokenByThoseWhoHaveWork) {
  constexpr int kLongPollUs = 600'000'000;
  MeshSizes sizes;
  sizes.num_domains = 2;
  Mesh mesh(sizes, nics_of(simulated({})));
  Proxies proxies(mesh, kLongPollUs);
  for (uint32_t count = 1; count <= 3; ++count) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    mesh.rank(0).push(0, {WriteKind::kCredit, 1, 0, 0, 0});
    const Inbox& sent = mesh.rank(0).inbox(0, 1);
    const Inbox& received = mesh.rank(1).inbox(0, 0);
    while (load(sent.completed_of(WriteKind::kCredit)) < count ||
           load(received.arrived_of(WriteKind::kCredit)) < count) {
      proxies[0].wake();
      proxies[1].wake();
      ::sched_yield();
    }
  }
}

TEST(Proxy, CountsWhatArrivedBeforeItsPeerLeft) {
  constexpr int kLongPollUs = 600'000'000;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    MeshSizes sizes;
    sizes.num_domains = 2;
    Mesh mesh(sizes, nics_of(simulated({seed, 100, true, 0})));
    Proxies proxies(mesh, kLongPollUs);
    mesh.rank(1).push_rows(0, 4);
    proxies[1].wake();
    while (load(mesh.rank(1).inbox(0, 0).completed_of(WriteKind::kRows)) < 4) proxies[1].wake();
    proxies.end(1);
    mesh.close(1);
    proxies[0].peer_gone(1);
    proxies[0].settle();
    EXPECT_EQ(load(mesh.rank(0).inbox(0, 1).arrived_of(WriteKind::kRows)), 4u);
    mesh.rank(0).push_rows(1, 2);
    while (load(mesh.rank(0).inbox(0, 1).completed_of(WriteKind::kRows)) < 2) proxies[0].wake();
    EXPECT_EQ(mesh.rank(0).listener().count(), 0) << mesh.rank(0).listener().cause();
  }
}

TEST(Proxy, DropsDescriptorsAfterAnAbortAndEndsWithAFullRing) {
  const auto fabric = simulated({});
  Mesh mesh({}, nics_of(fabric));
  fabric->cut(mesh.address(0), mesh.address(1), true);
  Proxies proxies(mesh);
  mesh.rank(0).push_rows(1, 4);
  proxies[0].abort();
  proxies[0].settle();
  const uint64_t writes = proxies[0].counts().writes;
  mesh.rank(0).push_rows(1, 4);
  proxies[0].settle();
  EXPECT_EQ(proxies[0].counts().writes, writes);
}

// ---------------------------------------------------------------------------------------- faults

// The fault of rank 0's proxy: it ends, or hangs until it is let go.
class ProxyFault : public ::testing::Test {
 protected:
  ~ProxyFault() override { fault_hook = nullptr; }

  static Status die(const char* step, int rank) {
    if (rank != 0 || std::string(step) != "proxy") return Status();
    return error(hepErrorInternal, "the proxy was told to die");
  }

  static Status hang(const char* step, int rank) {
    if (rank != 0 || std::string(step) != "proxy") return Status();
    std::unique_lock<std::mutex> lock(gate_mutex());
    gate().wait(lock, [] { return gate_open(); });
    return Status();
  }

  static void open_gate() {
    const std::lock_guard<std::mutex> lock(gate_mutex());
    gate_open() = true;
    gate().notify_all();
  }

 private:
  static std::mutex& gate_mutex() {
    static std::mutex mutex;
    return mutex;
  }
  static std::condition_variable& gate() {
    static std::condition_variable condition;
    return condition;
  }
  static bool& gate_open() {
    static bool open = false;
    return open;
  }
};

TEST_F(ProxyFault, AProxyThatDiesIsToldAndKeepsNobodyWaiting) {
  fault_hook = die;
  Mesh mesh({}, nics_of(simulated({})));
  Proxies proxies(mesh);
  proxies[0].settle();
  EXPECT_EQ(mesh.rank(0).listener().count(), 1);
  EXPECT_EQ(mesh.rank(0).listener().rank(), -1);
  EXPECT_EQ(mesh.rank(0).listener().cause(), "the proxy was told to die");
  EXPECT_EQ(mesh.rank(1).listener().count(), 0);
}

TEST_F(ProxyFault, AProxyThatHangsKeepsNobodyWaitingForEverAndGoesOn) {
  fault_hook = hang;
  MeshSizes sizes;
  sizes.num_domains = 2;
  Mesh mesh(sizes, nics_of(simulated({})));
  Proxies proxies(mesh);
  mesh.rank(1).push_rows(0, 1);
  while (load(mesh.rank(1).inbox(0, 0).completed_of(WriteKind::kRows)) < 1) ::sched_yield();
  proxies[0].settle();
  EXPECT_EQ(load(mesh.rank(0).inbox(0, 1).arrived_of(WriteKind::kRows)), 0u);
  open_gate();
  proxies[0].settle();
  EXPECT_EQ(load(mesh.rank(0).inbox(0, 1).arrived_of(WriteKind::kRows)), 1u);
  EXPECT_EQ(mesh.rank(0).listener().count(), 0);
}

}  // namespace
}  // namespace hep
