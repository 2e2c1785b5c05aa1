// SPDX-License-Identifier: Apache-2.0
// A communicator leaves nothing behind, however many come and go.
#include <dirent.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <ostream>
#include <string>
#include <thread>

#include "ranks/support.h"

namespace {

using harness::world;

constexpr int kWarmup = 5;                // after which allocators and runtimes keep what they have
constexpr int kSlackMappings = 8;         // the allocator's, of threads that come and go
constexpr size_t kSlackBytes = 16 << 20;  // of device memory, the driver's
constexpr std::chrono::seconds kPatience{20};

int entries_of(const char* path) {
  int count = 0;
  DIR* const directory = ::opendir(path);
  if (directory == nullptr) return 0;
  while (::readdir(directory) != nullptr) ++count;
  ::closedir(directory);
  return count;
}

int lines_of(const char* path) {
  std::ifstream file(path);
  int count = 0;
  for (std::string line; std::getline(file, line);) ++count;
  return count;
}

// What a process can leak beside memory.
struct Holdings {
  int descriptors = entries_of("/proc/self/fd");
  int threads = entries_of("/proc/self/task");
  int mappings = lines_of("/proc/self/maps");

  bool within(const Holdings& before) const {
    return descriptors <= before.descriptors && threads <= before.threads &&
           mappings <= before.mappings + kSlackMappings;
  }
};

std::ostream& operator<<(std::ostream& out, const Holdings& h) {
  return out << h.descriptors << " descriptors, " << h.threads << " threads, " << h.mappings
             << " mappings";
}

// Device memory in use on the device of this process's first rank. All processes call it.
size_t device_bytes() {
  size_t bytes = 0;
  world().run([&bytes](int rank) {
    if (rank == world().first_rank()) bytes = harness::device_memory_in_use(world().backend());
  });
  return bytes;
}

void create_use_and_destroy(int rank, const hepConfig_t& config, harness::Stream& stream) {
  hepComm_t comm = nullptr;
  ASSERT_HEP(world().create_comm(rank, config, &comm));
  {
    RoutingHandle routing;
    ASSERT_HEP(hepRoutingCreate(routing.out(), comm, nullptr));
    ASSERT_HEP(harness::update_routing(routing.get(), nullptr, 0, 1, hepIndexInt32, stream.get()));
    hepDispatchArgs_t dispatch = HEP_DISPATCH_ARGS_INITIALIZER;
    ASSERT_HEP(hepDispatch(routing.get(), &dispatch, stream.get()));
    stream.synchronize();
  }
  ASSERT_HEP(hepCommDestroy(comm));
}

void run_cycles(int count) {
  const hepConfig_t config = small_config();
  world().run([&](int rank) {
    harness::Stream stream(world().backend());
    for (int cycle = 0; cycle < count && !testing::Test::HasFailure(); ++cycle)
      create_use_and_destroy(rank, config, stream);
  });
}

TEST(Cycles, LeaveNoDeviceMemoryBehind) {
  if (world().backend() != hepBackendCuda) GTEST_SKIP() << "the host backend has no device memory";
  run_cycles(kWarmup);
  const size_t before = device_bytes();
  run_cycles(options().cycles);
  EXPECT_LE(device_bytes(), before + kSlackBytes) << "after " << options().cycles << " cycles";
}

TEST(Cycles, LeaveNoDescriptorsThreadsOrMappingsBehind) {
  run_cycles(kWarmup);
  // The thread of a rendezvous ends by itself, a moment after its ranks have left.
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const Holdings before;
  run_cycles(options().cycles);
  Holdings after;
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!after.within(before) && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    after = Holdings();
  }
  EXPECT_TRUE(after.within(before))
      << "before " << options().cycles << " cycles: " << before << "; after: " << after;
}

}  // namespace
