// SPDX-License-Identifier: Apache-2.0
// Two ranks in processes of their own, over libfabric: on loopback, and in two network namespaces
// with a switch between them that fails. The process of the test uses no library, so that it can
// fork.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>
#include <string>
#include <thread>

#include "base/deadline.h"
#include "base/descriptor.h"
#include "network/fabric.h"
#include "network/greeting.h"
#include "network/proxy.h"
#include "unit/network/mesh.h"

namespace hep {
namespace {

constexpr int kPatienceMs = 100000;  // TCP may send again after half a minute
constexpr int kPollUs = 50;
constexpr uint64_t kMaxChunks = 100000;

enum Stage : int { kStarted, kOpened, kConnected, kSettled, kEnded };

// Memory of the test and its ranks. A rank writes its part, the test the rest.
struct Shared {
  struct Rank {
    std::atomic<int> stage{kStarted};
    std::atomic<uint64_t> exchanged{0};               // chunks of each kind
    std::atomic<uint64_t> outstanding{~uint64_t{0}};  // writes, since the peer is gone
    NicAddress address{};                             // before kOpened
    int result = hepSuccess, num_wrong = 0;
    char text[512] = "";  // of the last error
  };

  Rank ranks[2];
  std::atomic<int> connect_ms{0};  // may connect, within so long
  std::atomic<uint64_t> allowed{0};
  std::atomic<bool> peer_is_gone{false}, may_end{false};
};

// Where a rank runs.
struct Place {
  const char* provider;
  std::string interface;
  std::string name_space;  // "": that of the test
};

// One of the ranks.
class RankProcess {
 public:
  RankProcess(Shared& shared, int rank, const Place& place)
      : shared_(shared), own_(shared.ranks[rank]), domain_(rank), place_(place) {}

  void run() {
    const Status status = live();
    own_.result = status.result();
    std::snprintf(own_.text, sizeof own_.text, "%s", status.message().c_str());
    own_.num_wrong = mesh_.num_wrong();
    own_.stage.store(kEnded);
  }

 private:
  static MeshSizes sizes() {
    MeshSizes sizes;
    sizes.num_domains = 2;
    sizes.num_chunks = kMaxChunks;
    return sizes;
  }

  Status live() {
    HEP_TRY(enter());
    std::string provider;
    HEP_TRY(open_fabric({place_.provider, "", place_.interface, {{}, 0, 0}, 2}, mesh_.sections(),
                        &provider, &nics_));
    own_.address = nics_[0]->address();
    own_.stage.store(kOpened);
    while (shared_.connect_ms.load() == 0) ::sched_yield();
    HEP_TRY(connect(shared_.connect_ms.load()));
    Proxy proxy({nics_[0].get()}, mesh_.plan(), mesh_.listener(), kPollUs);
    HEP_TRY(proxy.start());
    own_.stage.store(kConnected);
    exchange(proxy);
    return mesh_.listener().count() == 0 ? Status()
                                         : Status(hepErrorNetwork, mesh_.listener().cause());
  }

  Status enter() {
    if (place_.name_space.empty()) return Status();
    const Descriptor file(::open(("/run/netns/" + place_.name_space).c_str(), O_RDONLY));
    if (::setns(file.get(), CLONE_NEWNET) == 0) return Status();
    return system_error("setns %s", place_.name_space.c_str());
  }

  Status connect(int timeout_ms) {
    const int other = 1 - domain_;
    HEP_TRY(nics_[0]->add_peer(other, shared_.ranks[other].address));
    GreetingNames names{{"NIC of rank " + std::to_string(domain_)},
                        {{"NIC of rank 0"}, {"NIC of rank 1"}}};
    return greet({nics_[0].get()}, domain_, names, Deadline::after_ms(timeout_ms));
  }

  void exchange(Proxy& proxy) {
    const int other = 1 - domain_;
    while (!shared_.may_end.load() && mesh_.listener().count() == 0) {
      if (shared_.peer_is_gone.load()) {
        settle(proxy, other);
      } else {
        const uint64_t allowed = shared_.allowed.load();
        mesh_.allow(allowed);
        mesh_.work();
        if (mesh_.is_done()) own_.exchanged.store(allowed);
      }
      ::sched_yield();
    }
  }

  void settle(Proxy& proxy, int other) {
    if (own_.stage.load() != kSettled) {
      proxy.peer_gone(other);
      proxy.settle();
      own_.stage.store(kSettled);
    }
    own_.outstanding.store(mesh_.num_outstanding(0, other));
  }

  Shared& shared_;
  Shared::Rank& own_;
  const int domain_;
  const Place place_;
  MeshRank mesh_{sizes(), domain_};
  std::vector<std::unique_ptr<Transport>> nics_;
};

// Both ranks, as the test sees them.
class Pair {
 public:
  Pair(const Place& first, const Place& second) {
    void* const memory =
        ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    shared_ = new (memory) Shared;
    const Place* const places[] = {&first, &second};
    for (int rank = 0; rank < 2; ++rank) {
      processes_[rank] = ::fork();
      if (processes_[rank] != 0) continue;
      RankProcess(*shared_, rank, *places[rank]).run();
      std::_Exit(0);
    }
  }

  ~Pair() {
    for (const pid_t process : processes_) {
      ::kill(process, SIGKILL);
      ::waitpid(process, nullptr, 0);
    }
    ::munmap(shared_, sizeof *shared_);
  }

  Pair(const Pair&) = delete;
  Pair& operator=(const Pair&) = delete;

  Shared* operator->() { return shared_; }
  void signal(int rank, int number) { ::kill(processes_[rank], number); }

  // Waits for something of the ranks; false if it does not come.
  static bool wait(const std::function<bool()>& has_come) {
    const Deadline patience = Deadline::after_ms(kPatienceMs);
    while (!has_come() && !patience.expired())
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return has_come();
  }
  bool reach(int rank, int stage) {
    return wait([&] { return shared_->ranks[rank].stage.load() >= stage; });
  }
  bool reach(int stage) { return reach(0, stage) && reach(1, stage); }

  // Why this machine cannot run the test, or "".
  std::string reason_to_skip() {
    EXPECT_TRUE(reach(kOpened));
    for (const Shared::Rank& rank : shared_->ranks) {
      if (rank.stage.load() != kEnded) continue;
      EXPECT_EQ(rank.result, hepErrorUnsupported) << rank.text;
      return rank.text;
    }
    return "";
  }
  bool connect() {
    shared_->connect_ms.store(kPatienceMs);
    return reach(kConnected);
  }
  ::testing::AssertionResult exchange(uint64_t chunks) {
    shared_->allowed.store(chunks);
    const Shared::Rank &first = shared_->ranks[0], &second = shared_->ranks[1];
    const auto has = [&] { return first.exchanged == chunks && second.exchanged == chunks; };
    wait([&] { return has() || first.stage == kEnded || second.stage == kEnded; });
    if (has()) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure()
           << first.exchanged << " and " << second.exchanged << " chunks were exchanged; "
           << first.text << "; " << second.text;
  }

  void end(int rank) {
    shared_->may_end.store(true);
    ASSERT_TRUE(reach(rank, kEnded));
    EXPECT_EQ(shared_->ranks[rank].result, hepSuccess) << shared_->ranks[rank].text;
    EXPECT_EQ(shared_->ranks[rank].num_wrong, 0);
  }

 private:
  Shared* shared_;
  pid_t processes_[2];
};

class NetworkProcesses : public ::testing::TestWithParam<const char*> {};

// A stopped peer is waited for; one that is killed is missed by nobody.
TEST_P(NetworkProcesses, GoOnAfterAStopAndWithoutAPeerThatIsKilled) {
  const Place place{GetParam(), "lo", ""};
  Pair pair(place, place);
  if (const std::string reason = pair.reason_to_skip(); !reason.empty()) GTEST_SKIP() << reason;
  ASSERT_TRUE(pair.connect());
  ASSERT_TRUE(pair.exchange(1000));

  pair.signal(1, SIGSTOP);
  pair->allowed.store(2000);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_EQ(pair->ranks[0].exchanged.load(), 1000u);
  pair.signal(1, SIGCONT);
  ASSERT_TRUE(pair.exchange(2000));

  pair.signal(1, SIGSTOP);  // so that writes are under way
  pair->allowed.store(3000);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  pair.signal(1, SIGKILL);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));  // the news come later than errors
  pair->peer_is_gone.store(true);
  ASSERT_TRUE(Pair::wait([&] { return pair->ranks[0].outstanding.load() == 0; }));
  pair.end(0);
}

INSTANTIATE_TEST_SUITE_P(OverTcp, NetworkProcesses, ::testing::Values("tcp", "net"),
                         [](const auto& info) { return std::string(info.param); });

// ------------------------------------------------------------------------------------- namespaces

// Two network namespaces, with a bridge in a third one between them.
class Namespaces : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can create network namespaces";
    const std::string bridge = name("bridge");
    const bool made = ip("netns add " + bridge) &&
                      ip("-n " + bridge + " link add bridge type bridge forward_delay 0") &&
                      add_host(0) && add_host(1) && plug_in();
    if (!made) GTEST_SKIP() << "ip netns, veth and bridge do not work here";
    ASSERT_TRUE(Pair::wait([&] { return is_up(0) && is_up(1); }));
  }

  void TearDown() override {
    for (const char* which : {"0", "1", "bridge"}) ip("netns del " + name(which));
  }

  static Place place(int host) { return {"tcp", interface(host), name(std::to_string(host))}; }

  // Takes the bridge out of service: what the hosts send is lost, and their interfaces do not tell.
  static bool unplug() { return ip("-n " + name("bridge") + " link set bridge down"); }
  static bool plug_in() { return ip("-n " + name("bridge") + " link set bridge up"); }

 private:
  static bool add_host(int host) {
    const std::string number = std::to_string(host), own = name(number), port = "port" + number;
    return ip("netns add " + own) &&
           ip("link add " + interface(host) + " netns " + own + " type veth peer name " + port +
              " netns " + name("bridge")) &&
           ip("-n " + name("bridge") + " link set " + port + " master bridge up") &&
           ip("-n " + own + " addr add 10.97.0." + std::to_string(host + 1) + "/24 dev " +
              interface(host)) &&
           ip("-n " + own + " link set " + interface(host) + " up");
  }
  static bool is_up(int host) {
    return ip("-n " + name(std::to_string(host)) + " link show " + interface(host) +
              " | grep -q 'state UP'");
  }
  static std::string interface(int host) { return "hepveth" + std::to_string(host); }
  static std::string name(const std::string& which) {
    return "hep" + std::to_string(::getpid()) + "_" + which;
  }
  static bool ip(const std::string& command) {
    return std::system(("ip " + command + " 2>/dev/null").c_str()) == 0;
  }
};

TEST_F(Namespaces, LoseNothingWhenTheSwitchIsOutForTwoSeconds) {
  Pair pair(place(0), place(1));
  if (const std::string reason = pair.reason_to_skip(); !reason.empty()) GTEST_SKIP() << reason;
  ASSERT_TRUE(pair.connect());
  ASSERT_TRUE(pair.exchange(1000));
  ASSERT_TRUE(unplug());
  pair->allowed.store(2000);
  std::this_thread::sleep_for(std::chrono::seconds(2));
  for (const Shared::Rank& rank : pair->ranks) EXPECT_EQ(rank.exchanged.load(), 1000u);
  ASSERT_TRUE(plug_in());
  ASSERT_TRUE(pair.exchange(2000));
  pair.end(0);
  pair.end(1);
}

TEST_F(Namespaces, NameThePairThatNoSwitchConnects) {
  constexpr int kTimeoutMs = 500;
  Pair pair(place(0), place(1));
  if (const std::string reason = pair.reason_to_skip(); !reason.empty()) GTEST_SKIP() << reason;
  ASSERT_TRUE(unplug());
  pair->connect_ms.store(kTimeoutMs);
  ASSERT_TRUE(pair.reach(kEnded));
  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(pair->ranks[rank].result, hepErrorNetwork);
    const std::string text = pair->ranks[rank].text;
    EXPECT_NE(text.find("NIC of rank 0"), std::string::npos) << text;
    EXPECT_NE(text.find("NIC of rank 1"), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace hep
