// SPDX-License-Identifier: Apache-2.0
// The network of ranks as a communicator creates it, over the simulated transport.
#include "network/network.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "base/rank_threads.h"
#include "network/ring.h"
#include "network/simulated.h"
#include "unit/network/mesh.h"

namespace hep {
namespace {

constexpr int kLongMs = 60000;

// The settings of one test.
class Settings {
 public:
  ~Settings() {
    for (const char* name : names_) ::unsetenv(name);
  }
  void set(const char* name, const std::string& text) {
    names_.push_back(name);
    ::setenv(name, text.c_str(), 1);
  }

 private:
  std::vector<const char*> names_;
};

class NetworkTest : public ::testing::Test {
 protected:
  void open(int num_domains, int domain_size) {
    for (int r = 0; r < num_domains * domain_size; ++r) {
      networks_.emplace_back();
      const Status opened = Network::open({r, domain_size, num_domains, {}},
                                          {{memory_, 0, sizeof memory_}}, &networks_[r]);
      ASSERT_TRUE(opened.ok()) << opened.message();
      addresses_.push_back(networks_[r]->address());
    }
  }

  std::vector<Status> connect(int timeout_ms = kLongMs) {
    return run_rank_threads(static_cast<int>(networks_.size()), [&](int rank) {
      return networks_[rank]->connect(addresses_, Deadline::after_ms(timeout_ms));
    });
  }

  void expect_connected() {
    for (const Status& status : connect()) EXPECT_TRUE(status.ok()) << status.message();
  }

  static void expect_mentions(const Status& status, std::initializer_list<const char*> words) {
    for (const char* word : words)
      EXPECT_NE(status.message().find(word), std::string::npos) << status.message();
  }

  char memory_[4096] = {};
  Settings settings_;
  std::vector<std::unique_ptr<Network>> networks_;
  std::vector<NetworkAddress> addresses_;
};

TEST_F(NetworkTest, ConnectsRailsWithEverySeed) {
  for (const char* name : {"simulated", "simulated:1", "simulated:2", "simulated:3"}) {
    settings_.set("HEP_NETWORK", name);
    settings_.set("HEP_NETWORK_NICS", "2");
    open(3, 2);
    EXPECT_STREQ(addresses_[0].provider, name);
    EXPECT_EQ(addresses_[0].num_nics, 2);
    expect_connected();
    networks_.clear();
    addresses_.clear();
  }
}

TEST_F(NetworkTest, CarriesWritesOnceItHasStarted) {
  settings_.set("HEP_NETWORK", "simulated:5");
  open(2, 1);
  expect_connected();
  MeshRank ranks[] = {MeshRank({2}, 0), MeshRank({2}, 1)};
  for (int r = 0; r < 2; ++r)
    ASSERT_TRUE(networks_[r]->start(ranks[r].plan(), ranks[r].listener()).ok());
  ranks[0].push(0, {WriteKind::kCredit, 1, 0, 0, 0});
  networks_[0]->proxy().wake();
  while (load(ranks[1].inbox(0, 0).arrived_of(WriteKind::kCredit)) == 0) ::sched_yield();
  networks_.clear();  // whose proxies use the ranks
}

// Ranks 0 and 2 form a rail, and 1 and 3. All but the cut pair greet each other in time.
TEST_F(NetworkTest, NamesThePairsOfNicsThatDoNotReachEachOther) {
  settings_.set("HEP_NETWORK", "simulated");
  open(2, 2);
  std::shared_ptr<SimulatedFabric> fabric;
  ASSERT_TRUE(SimulatedFabric::of_process(0, &fabric).ok());
  fabric->cut(addresses_[1].nics[0], addresses_[3].nics[0], true);
  constexpr int kTimeoutMs = 3000;  // half of which the ranks that reach each other have
  const std::vector<Status> statuses = connect(kTimeoutMs);
  EXPECT_TRUE(statuses[0].ok()) << statuses[0].message();
  EXPECT_TRUE(statuses[2].ok()) << statuses[2].message();
  const std::string one = std::string("NIC ") + addresses_[1].nics[0].nic + " of rank 1";
  const std::string three = std::string("NIC ") + addresses_[3].nics[0].nic + " of rank 3";
  EXPECT_EQ(statuses[1].result(), hepErrorNetwork);
  EXPECT_EQ(statuses[1].message(),
            one + " does not reach " + three + "; " + one + " hears nothing of " + three);
  EXPECT_EQ(statuses[3].result(), hepErrorNetwork);
  EXPECT_EQ(statuses[3].message(),
            three + " does not reach " + one + "; " + three + " hears nothing of " + one);
}

TEST_F(NetworkTest, NamesAPeerThatCannotBeWrittenTo) {
  settings_.set("HEP_NETWORK", "simulated");
  open(2, 1);
  networks_[1].reset();
  const Status status = networks_[0]->connect(addresses_, Deadline::after_ms(kLongMs));
  EXPECT_EQ(status.result(), hepErrorNetwork);
  expect_mentions(status, {"of rank 0 cannot write to NIC", "of rank 1: the endpoint is gone"});
}

TEST_F(NetworkTest, NamesTwoRanksThatDifferInProviderOrNics) {
  settings_.set("HEP_NETWORK", "simulated");
  open(2, 2);
  std::vector<NetworkAddress> others = addresses_;
  std::snprintf(others[3].provider, sizeof others[3].provider, "efa");
  Status status = compare_networks(others);
  EXPECT_EQ(status.result(), hepErrorMismatch);
  expect_mentions(status, {"rank 0 and rank 3", "simulated and efa", "HEP_NETWORK"});

  others = addresses_;
  others[2].num_nics = 4;
  status = compare_networks(others);
  EXPECT_EQ(status.result(), hepErrorMismatch);
  expect_mentions(status, {"rank 0 and rank 2", "1 and 4", "HEP_NETWORK_NICS"});
}

TEST_F(NetworkTest, RefusesAddressesOfAnotherProcess) {
  settings_.set("HEP_NETWORK", "simulated");
  open(2, 1);
  ++addresses_[1].nics[0].bytes[0];
  const Status status = networks_[0]->connect(addresses_, Deadline::after_ms(kLongMs));
  EXPECT_EQ(status.result(), hepErrorNetwork);
  expect_mentions(status, {"ranks of one process"});
}

TEST_F(NetworkTest, RefusesASeedThatIsNoNumber) {
  for (const char* name : {"simulated:", "simulated:x", "simulated:1x", "simulatedd"}) {
    settings_.set("HEP_NETWORK", name);
    std::unique_ptr<Network> network;
    const Status status = Network::open({0, 1, 2, {}}, {}, &network);
    EXPECT_EQ(status.result(), hepErrorInvalidArgument);
    expect_mentions(status, {name, "simulated:SEED"});
  }
}

}  // namespace
}  // namespace hep
