// SPDX-License-Identifier: Apache-2.0
// Windows: shared by ranks as threads and as processes, and what goes wrong with them.
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/identity.h"
#include "memory_fixture.h"

namespace hep {
namespace {

// ------------------------------------------------------------------------------------- sharing

class HostWindow : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, HostWindow, testing::Values(1, 2, 5, 64));

TEST_P(HostWindow, IsZeroAtFirstAndSharedByThreads) {
  World world(GetParam());
  run_threads(0, GetParam(), [&](int rank) { exchange_words(world, rank, keep); });
}

TEST_P(HostWindow, IsSharedOverSockets) {
  World world(GetParam());
  run_threads(0, GetParam(), [&](int rank) { exchange_words(world, rank, pretend_other_process); });
}

TEST_P(HostWindow, IsSharedByProcesses) {
  World world(GetParam());
  run_processes(GetParam(), 1, [&](int rank) { exchange_words(world, rank, keep); });
}

TEST(HostWindows, AreSharedByProcessesOfSeveralRanks) {
  World world(12);
  run_processes(3, 4, [&](int rank) { exchange_words(world, rank, keep); });
}

TEST(HostWindows, NeedFewDescriptors) {
  const pid_t child = fork_child([] {
    const rlimit limit{1024, 1024};
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
    for (const Change change : {keep, pretend_other_process}) {
      World world(64);
      run_threads(0, 64, [&](int rank) { exchange_words(world, rank, change); });
    }
  });
  EXPECT_EQ(exit_code(child), 0);
}

TEST(HostWindows, StayReadableWhenTheirOwnerHasGone) {
  World world(2);
  run_threads(0, 2, [&](int rank) {
    auto window = connect_window(world, rank, keep);
    ASSERT_TRUE(window);
    if (rank == 0) std::memset(window->address(0), 7, kBytes);
    ASSERT_TRUE(world.barrier());
    if (rank == 0) window.reset();
    ASSERT_TRUE(world.barrier());
    if (rank == 1) {
      EXPECT_EQ(static_cast<char*>(window->address(0))[kBytes - 1], 7);
    }
  });
}

TEST(HostWindows, LeaveNothingBehind) {
  const long files = open_files();
  ASSERT_EQ(window_mappings(), 0);
  for (int cycle = 0; cycle < 50; ++cycle) {
    World world(3);
    run_threads(0, 3, [&](int rank) {
      const auto window = connect_window(world, rank, cycle % 2 ? keep : pretend_other_process);
      ASSERT_TRUE(world.barrier());
      EXPECT_EQ(window_mappings(), 9);
      ASSERT_TRUE(world.barrier());
    });
    ASSERT_EQ(open_files(), files);
    ASSERT_EQ(window_mappings(), 0);
  }
}

TEST(HostWindows, LeaveNothingBehindWithoutConnecting) {
  const long files = open_files();
  {
    std::unique_ptr<Window> window;
    ASSERT_TRUE(Window::create(MemoryKind::host_descriptor, -1, 1, &window).ok());
    EXPECT_EQ(window->address(0), nullptr);
    EXPECT_EQ(window->bytes(), 1u);
  }
  EXPECT_EQ(open_files(), files);
  EXPECT_EQ(window_mappings(), 0);
}

TEST(HostWindows, ArePrivateToTheirUser) {
  std::unique_ptr<Window> window;
  ASSERT_TRUE(Window::create(MemoryKind::host_descriptor, -1, kBytes, &window).ok());
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    char target[256] = "";
    if (::readlink(entry.path().c_str(), target, sizeof target - 1) < 0) continue;
    if (std::strncmp(target, "/memfd:hybridep", 15) != 0) continue;
    struct stat file;
    ASSERT_EQ(::stat(entry.path().c_str(), &file), 0);
    EXPECT_EQ(file.st_mode & 0777, 0600u);
    ++found;
  }
  EXPECT_EQ(found, 1);
}

long library_files_in_shared_memory() {
  const std::filesystem::directory_iterator files("/dev/shm");
  return std::count_if(begin(files), end(files), [](const auto& file) {
    return file.path().filename().string().find("hybridep") != std::string::npos;
  });
}

TEST(HostWindows, LeaveNothingBehindWhenTheirProcessIsKilled) {
  World world(2);
  const pid_t child = fork_child([&] {
    const auto window = connect_window(world, 1, keep);
    ::pause();
  });
  {
    const auto window = connect_window(world, 0, keep);
    ASSERT_TRUE(window);
    EXPECT_EQ(window_mappings(), 2);
    EXPECT_EQ(library_files_in_shared_memory(), 0);
    ::kill(child, SIGKILL);
    EXPECT_EQ(exit_code(child), -SIGKILL);
    std::memset(window->address(1), 1, kBytes);  // still there for those who have it mapped
  }
  EXPECT_EQ(window_mappings(), 0);
  EXPECT_EQ(library_files_in_shared_memory(), 0);
}

TEST(HostWindows, DoNotNeedRoomInTheFileSystemOfSharedMemory) {
  constexpr int kRefused = 77;
  const pid_t child = fork_child([] {
    // A file system of one page in the place of /dev/shm, for this process alone.
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("none", "/dev/shm", "tmpfs", 0, "size=4096") != 0)
      ::_exit(kRefused);
    World world(3);
    run_threads(0, 3, [&](int rank) { exchange_words(world, rank, pretend_other_process); });
  });
  const int code = exit_code(child);
  if (code == kRefused) GTEST_SKIP() << "the kernel refuses new mount namespaces";
  EXPECT_EQ(code, 0);
}

TEST(HostWindows, NameTheLimitOfDescriptorsThatIsTooLow) {
  const pid_t child = fork_child([] {
    const rlimit limit{4, 4};
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
    std::vector<Descriptor> all;
    do {
      all.emplace_back(::dup(0));
    } while (all.back().valid());
    std::unique_ptr<Window> window;
    expect_error(Window::create(MemoryKind::host_descriptor, -1, kBytes, &window), hepErrorSystem,
                 "RLIMIT_NOFILE is 4");
  });
  EXPECT_EQ(exit_code(child), 0);
}

TEST(HostWindows, NameTheLimitOfFileSizesThatIsTooLow) {
  const pid_t child = fork_child([] {
    const rlimit limit{1 << 16, 1 << 16};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
    std::unique_ptr<Window> window;
    EXPECT_TRUE(Window::create(MemoryKind::host_descriptor, -1, 1 << 16, &window).ok());
    const Status status = Window::create(MemoryKind::host_descriptor, -1, 1 << 17, &window);
    EXPECT_EQ(status.result(), hepErrorOutOfMemory);
    EXPECT_NE(status.message().find("RLIMIT_FSIZE"), std::string::npos) << status.message();
  });
  EXPECT_EQ(exit_code(child), 0);
}

TEST(HostWindows, SayThatThereIsNotEnoughMemory) {
  std::unique_ptr<Window> window;
  expect_error(Window::create(MemoryKind::host_descriptor, -1, size_t{1} << 50, &window),
               hepErrorOutOfMemory, "1125899906842624 bytes");
}

// ------------------------------------------------------------------------------------ failures

class TwoWindows : public testing::Test {
 protected:
  void SetUp() override {
    for (int r = 0; r < 2; ++r) {
      ASSERT_TRUE(Window::create(MemoryKind::host_descriptor, -1, kBytes, &windows_[r]).ok());
      handles_.push_back(windows_[r]->handle());
    }
  }
  Status connect(int rank, int milliseconds = kPatienceMs) {
    return windows_[rank]->connect(handles_, rank, Deadline::after_ms(milliseconds));
  }

  std::unique_ptr<Window> windows_[2];
  std::vector<WindowHandle> handles_;
};

TEST_F(TwoWindows, OfDifferentSizesAreRefused) {
  handles_[1].bytes += 1;
  expect_error(connect(0), hepErrorMismatch, "rank 0 and rank 1 differ in the size");
}

TEST_F(TwoWindows, OfDifferentKindsAreRefused) {
  handles_[1].kind = MemoryKind::cuda_ipc;
  expect_error(connect(0), hepErrorMismatch, "cuda_ipc");
}

TEST_F(TwoWindows, OnDifferentHostsAreUnreachable) {
  handles_[1].host ^= 1;
  expect_error(connect(0), hepErrorUnreachable, "rank 0 cannot map the memory of rank 1");
}

TEST_F(TwoWindows, ConnectOnce) {
  ASSERT_TRUE(connect(0).ok());
  expect_error(connect(0), hepErrorInternal, "twice");
}

TEST_F(TwoWindows, DoNotMapMoreThanADescriptorHolds) {
  handles_[1].mapped_bytes += 4096;
  expect_error(connect(0), hepErrorSystem, "rank 0 cannot map the memory of rank 1");
  EXPECT_EQ(windows_[0]->address(1), nullptr);
}

TEST_F(TwoWindows, ReportAPeerOfThisProcessThatHasGone) {
  windows_[1].reset();
  expect_error(connect(0), hepErrorPeerLost, "rank 1");
}

TEST(ThreeWindows, TellTogetherOfPeersThatCannotBeMappedForOneReason) {
  std::unique_ptr<Window> windows[3];
  std::vector<WindowHandle> handles;
  for (std::unique_ptr<Window>& window : windows) {
    ASSERT_TRUE(Window::create(MemoryKind::host_descriptor, -1, kBytes, &window).ok());
    handles.push_back(window->handle());
  }
  windows[1].reset();
  windows[2].reset();
  expect_error(windows[0]->connect(handles, 0, Deadline::after_ms(kPatienceMs)), hepErrorPeerLost,
               "rank 0 cannot map the memory of ranks 1, 2: it no longer exists");
}

TEST_F(TwoWindows, ReportAPeerThatClosedItsDescriptor) {
  for (WindowHandle& handle : handles_) pretend_other_process(handle);
  windows_[1].reset();
  EXPECT_FALSE(connect(0, 2000).ok());
}

TEST_F(TwoWindows, SayWhatIsMissingWhereNeitherSocketsNorProcessIdsReach) {
  for (WindowHandle& handle : handles_) {
    lose_sockets(handle);
    handle.descriptor.process_namespace ^= 1;
  }
  const Status status = connect(0);
  expect_error(status, hepErrorSystem, "descriptor of rank 1");
  expect_error(status, hepErrorSystem, "need a common network namespace");
}

TEST_F(TwoWindows, SayThatTheirUsersDiffer) {
  for (WindowHandle& handle : handles_) {
    lose_sockets(handle);
    handle.descriptor.process_namespace ^= 1;
  }
  handles_[1].descriptor.user_id += 4242;
  const std::string users = std::to_string(handles_[0].descriptor.user_id) + " and " +
                            std::to_string(handles_[1].descriptor.user_id);
  expect_error(connect(0), hepErrorSystem, "run as users " + users);
}

TEST(Windows, OfNoBytesAreRefused) {
  std::unique_ptr<Window> window;
  expect_error(Window::create(MemoryKind::host_descriptor, -1, 0, &window), hepErrorInvalidArgument,
               "1 byte");
}

TEST(Windows, NameThePeersThatDoNotConnect) {
  World world(4);
  run_threads(0, 4, [&](int rank) {
    std::unique_ptr<Window> window;
    ASSERT_TRUE(Window::create(MemoryKind::host_descriptor, -1, kBytes, &window).ok());
    WindowHandle handle = window->handle();
    pretend_other_process(handle);
    const auto handles = world.all_gather(rank, handle);
    if (rank < 2)
      expect_error(
          window->connect(handles, rank, Deadline::after_ms(300)), hepErrorTimeout,
          "rank " + std::to_string(rank) + ": no file descriptor came in time from ranks 2, 3");
    ASSERT_TRUE(world.barrier());
  });
}

TEST(Windows, NameAPeerWhoseProcessHasGone) {
  World world(2);
  const pid_t child = fork_child([&] {
    std::unique_ptr<Window> window;
    ASSERT_TRUE(Window::create(MemoryKind::host_descriptor, -1, kBytes, &window).ok());
    world.all_gather(1, window->handle());
  });
  std::unique_ptr<Window> window;
  ASSERT_TRUE(Window::create(MemoryKind::host_descriptor, -1, kBytes, &window).ok());
  const auto handles = world.all_gather(0, window->handle());
  ASSERT_EQ(exit_code(child), 0);
  expect_error(window->connect(handles, 0, Deadline::after_ms(kPatienceMs)), hepErrorPeerLost,
               "descriptor of rank 1");
}

// -------------------------------------------------------------------- where sockets do not reach

// Whether the kernel lets a process take a descriptor of a sibling.
bool siblings_are_open() {
  const pid_t target = fork_child([] { ::pause(); });
  const pid_t taker = fork_child([target] {
    const int process = static_cast<int>(::syscall(434, target, 0));
    ::_exit(process >= 0 && ::syscall(438, process, 0, 0) >= 0 ? 0 : 1);
  });
  const bool open = exit_code(taker) == 0;
  ::kill(target, SIGKILL);
  exit_code(target);
  return open;
}

TEST(HostWindows, AreTakenOutOfThePeersProcessWithoutSockets) {
  const int process = static_cast<int>(::syscall(434, ::getpid(), 0));
  const int copy = process < 0 ? -1 : static_cast<int>(::syscall(438, process, 0, 0));
  ::close(copy);
  ::close(process);
  if (copy < 0) GTEST_SKIP() << "the kernel refuses pidfd_getfd";
  World world(5);
  run_threads(0, 5, [&](int rank) { exchange_words(world, rank, lose_sockets); });
}

TEST(HostWindows, AreSharedAcrossNetworkNamespaces) {
  if (!siblings_are_open()) GTEST_SKIP() << "the kernel refuses pidfd_getfd among siblings";
  const pid_t probe = fork_child([] { ::_exit(::unshare(CLONE_NEWNET) == 0 ? 0 : 1); });
  if (exit_code(probe) != 0) GTEST_SKIP() << "the kernel refuses new network namespaces";
  World world(4);
  run_processes(4, 1, [&](int rank) {
    // Ranks 0 and 1 share a namespace, so sockets and descriptor numbers are both in use.
    if (rank >= 2) {
      ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
    }
    exchange_words(world, rank, keep);
  });
}

// ------------------------------------------------------------------------------------ identity

TEST(Identity, TellsProcessesApartAndHostsNot) {
  const uint64_t process = process_identity(), host = host_identity();
  EXPECT_EQ(process_identity(), process);
  EXPECT_EQ(exit_code(fork_child([&] {
              EXPECT_NE(process_identity(), process);
              EXPECT_EQ(host_identity(), host);
            })),
            0);
}

}  // namespace
}  // namespace hep
