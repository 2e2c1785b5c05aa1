// SPDX-License-Identifier: Apache-2.0
// A process may fork at any time. Its children make communicators of their own, and keep nothing of
// their parent's.
#include <gtest/gtest.h>
#include <hybridep.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <fstream>
#include <functional>
#include <string>
#include <thread>

namespace {

constexpr int kChildren = 100;
constexpr uint64_t kRoutingBytes = 64 * 1024;
constexpr unsigned kChildSeconds = 20;  // after which a child that hangs is killed

hepComm_t make_comm() {
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.backend = hepBackendHost;
  config.max_tokens = 8;
  config.hidden = 8;
  config.num_experts = 2;
  hepComm_t comm = nullptr;
  return hepCommInitAll(&comm, 1, nullptr, &config) == hepSuccess ? comm : nullptr;
}

bool is_true_in_child(const std::function<bool()>& condition) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(kChildSeconds);
    ::_exit(condition() ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  return status == 0;
}

bool maps_a_window() {
  std::ifstream file("/proc/self/maps");
  for (std::string line; std::getline(file, line);)
    if (line.find("memfd:hybridep") != std::string::npos) return true;
  return false;
}

class ForkTest : public testing::Test {
 protected:
  ForkTest() { EXPECT_NE(comm_, nullptr) << hepGetLastError(); }
  ~ForkTest() override { EXPECT_EQ(hepCommDestroy(comm_), hepSuccess); }

  const hepComm_t comm_ = make_comm();
};

TEST_F(ForkTest, AChildMakesACommunicatorWhateverItsParentsThreadsDo) {
  std::atomic<bool> done{false};
  std::thread user([&] {
    for (hepResult_t result; !done;) hepCommGetAsyncError(comm_, &result);
  });
  int good = 0;
  for (int child = 0; child < kChildren && good == child; ++child)
    good += is_true_in_child([] {
      const hepComm_t own = make_comm();
      return own != nullptr && hepCommDestroy(own) == hepSuccess;
    });
  done = true;
  user.join();
  EXPECT_EQ(good, kChildren);
}

bool makes_routing(hepComm_t comm, void* memory) {
  hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
  config.memory = memory;
  config.memory_bytes = kRoutingBytes;
  hepRouting_t routing = nullptr;
  return hepRoutingCreate(&routing, comm, &config) == hepSuccess &&
         hepRoutingDestroy(routing) == hepSuccess;
}

TEST_F(ForkTest, AChildBringsMemoryOfRoutingsWhateverItsParentsThreadsDo) {
  alignas(256) static unsigned char memory[2][kRoutingBytes];
  ASSERT_TRUE(makes_routing(comm_, memory[0])) << hepGetLastError();
  std::atomic<bool> done{false};
  std::thread user([&] {
    while (!done) makes_routing(comm_, memory[0]);
  });
  int good = 0;
  for (int child = 0; child < kChildren && good == child; ++child)
    good += is_true_in_child([] {
      const hepComm_t own = make_comm();
      return own != nullptr && makes_routing(own, memory[1]) && hepCommDestroy(own) == hepSuccess;
    });
  done = true;
  user.join();
  EXPECT_EQ(good, kChildren);
}

TEST_F(ForkTest, AChildKeepsNoWindowOfItsParent) {
  EXPECT_TRUE(maps_a_window());
  EXPECT_FALSE(is_true_in_child(maps_a_window));
}

}  // namespace
