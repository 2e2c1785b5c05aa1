// SPDX-License-Identifier: Apache-2.0
// Windows: ranks as threads and as processes, the passing of descriptors, and what must not disturb it.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>

#include "cuda/current_device.h"
#include "memory/window.h"

#ifdef HEP_HAVE_CUDA
#include <cuda_runtime_api.h>
#endif

namespace {

using namespace hep;

constexpr int kMaxTestRanks = 64;
constexpr int kPatienceMs = 60000;
constexpr size_t kBytes = 3 * 4096 + 100;

// What ranks have in common besides the code under test; also across fork().
class World {
 public:
  explicit World(int num_ranks) : num_ranks_(num_ranks) {
    shared_ = new (::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Shared;
  }
  ~World() { ::munmap(shared_, sizeof(Shared)); }

  // False if a rank did not come.
  bool barrier() {
    const int round = shared_->arrived.fetch_add(1) / num_ranks_;
    const Deadline deadline = Deadline::after_ms(kPatienceMs);
    while (shared_->arrived.load() < (round + 1) * num_ranks_) {
      if (deadline.expired()) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    return true;
  }

  std::vector<WindowHandle> all_gather(int rank, const WindowHandle& handle) {
    shared_->handles[rank] = handle;
    EXPECT_TRUE(barrier());
    return {shared_->handles, shared_->handles + num_ranks_};
  }

  int num_ranks() const { return num_ranks_; }

 private:
  struct Shared {
    std::atomic<int> arrived{0};
    WindowHandle handles[kMaxTestRanks];
  };
  const int num_ranks_;
  Shared* shared_;
};

using Body = std::function<void(int rank)>;

void run_threads(int first, int count, const Body& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(body, first + i);
  for (std::thread& thread : threads) thread.join();
}

// The child ends with exit code 0 if no assertion failed in it; returns its process id.
pid_t fork_child(const std::function<void()>& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    body();
    std::fflush(nullptr);
    ::_exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  return child;
}

int exit_code(pid_t child) {
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

void run_processes(int count, int threads, const Body& body) {
  std::vector<pid_t> children;
  for (int p = 0; p < count; ++p)
    children.push_back(fork_child([&] { run_threads(p * threads, threads, body); }));
  for (const pid_t child : children) EXPECT_EQ(exit_code(child), 0);
}

// What a test does to the handles on their way.
using Change = void (*)(WindowHandle&);
void keep(WindowHandle&) {}
// Ranks of this process then treat each other as those of another one.
void pretend_other_process(WindowHandle& handle) { handle.process ^= 1; }
// Sockets then lead nowhere, as if they were in another network namespace.
void lose_sockets(WindowHandle& handle) {
  handle.process ^= 1;
  handle.descriptor.socket_name[0] = 'X';
}

std::unique_ptr<Window> connect_window(World& world, int rank, Change change,
                                       MemoryKind kind = MemoryKind::host_descriptor,
                                       int device = -1) {
  std::unique_ptr<Window> window;
  const Status created = Window::create(kind, device, kBytes, &window);
  EXPECT_TRUE(created.ok()) << created.message();
  WindowHandle handle = window ? window->handle() : WindowHandle{};
  change(handle);
  const auto handles = world.all_gather(rank, handle);
  if (!window) return nullptr;
  const Status connected = window->connect(handles, rank, Deadline::after_ms(kPatienceMs));
  EXPECT_TRUE(connected.ok()) << connected.message();
  EXPECT_TRUE(world.barrier());
  window->release_descriptors();
  return connected.ok() ? std::move(window) : nullptr;
}

// Every rank finds all windows zero, then writes a word of its own to the front and the very end of
// each, and finds the words of all others in its own.
void exchange_words(World& world, int rank, Change change) {
  const auto window = connect_window(world, rank, change);
  ASSERT_TRUE(window);
  const int n = world.num_ranks();
  const auto front = [&](int r) { return static_cast<std::atomic<uint32_t>*>(window->address(r)); };
  const auto back = [&](int r) { return front(r) + kBytes / sizeof(uint32_t) - n; };
  for (int r = 0; r < n; ++r) {
    ASSERT_NE(window->address(r), nullptr);
    const auto* bytes = static_cast<const char*>(window->address(r));
    EXPECT_EQ(std::count(bytes, bytes + kBytes, 0), static_cast<long>(kBytes));
  }
  ASSERT_TRUE(world.barrier());
  for (int r = 0; r < n; ++r) {
    front(r)[rank] = 1000 * rank + r;
    back(r)[rank] = 2000 * rank + r;
  }
  ASSERT_TRUE(world.barrier());
  for (int r = 0; r < n; ++r) {
    EXPECT_EQ(front(rank)[r], static_cast<uint32_t>(1000 * r + rank));
    EXPECT_EQ(back(rank)[r], static_cast<uint32_t>(2000 * r + rank));
  }
  ASSERT_TRUE(world.barrier());
}

long open_files() {
  const std::filesystem::directory_iterator files("/proc/self/fd");
  return std::distance(begin(files), end(files));
}

long window_mappings() {
  std::ifstream maps("/proc/self/maps");
  long count = 0;
  for (std::string line; std::getline(maps, line);)
    count += line.find("/memfd:hybridep") != std::string::npos;
  return count;
}

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

void expect_error(const Status& status, hepResult_t result, const std::string& part) {
  EXPECT_EQ(status.result(), result);
  EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
}

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

TEST_F(TwoWindows, ReportAPeerThatClosedItsDescriptor) {
  for (WindowHandle& handle : handles_) pretend_other_process(handle);
  windows_[1].reset();
  EXPECT_FALSE(connect(0, 2000).ok());
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
          "rank " + std::to_string(rank) + ": no file descriptor came in time from rank 2, 3");
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

// -------------------------------------------------------------------------------- the channel

sockaddr_un socket_name(const std::string& text, socklen_t* length) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  text.copy(name.sun_path + 1, sizeof name.sun_path - 1);
  *length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + text.size());
  return name;
}

Descriptor connect_to(const DescriptorAddress& address) {
  Descriptor socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  socklen_t length;
  const sockaddr_un name = socket_name(address.socket_name, &length);
  EXPECT_EQ(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&name), length), 0);
  return socket;
}

void send_packet(const Descriptor& socket, std::string packet, int descriptor) {
  iovec part{packet.data(), packet.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (descriptor >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    *header = {};
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
  }
  EXPECT_EQ(::sendmsg(socket.get(), &message, 0), static_cast<ssize_t>(packet.size()));
}

// What rank 1 says to rank 0, caught by a socket that poses as rank 0's.
std::string catch_greeting(DescriptorChannel& rank1, DescriptorAddress rank0) {
  std::strcpy(rank0.socket_name, ("eavesdropper-" + std::to_string(::getpid())).c_str());
  const Descriptor listener(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  socklen_t length;
  const sockaddr_un name = socket_name(rank0.socket_name, &length);
  EXPECT_EQ(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&name), length), 0);
  EXPECT_EQ(::listen(listener.get(), 8), 0);
  const Status status = rank1.exchange(
      1, {0}, {rank0, rank1.address()}, [](int, int) {}, Deadline::after_ms(50));
  EXPECT_EQ(status.result(), hepErrorTimeout);
  const Descriptor connection(::accept(listener.get(), nullptr, nullptr));
  char packet[256];
  const ssize_t received = ::recv(connection.get(), packet, sizeof packet, 0);
  EXPECT_GT(received, 0);
  return std::string(packet, std::max<ssize_t>(received, 0));
}

TEST(DescriptorChannel, IgnoresStrangers) {
  const Descriptor offered[3] = {Descriptor(::memfd_create("a", MFD_CLOEXEC)),
                                 Descriptor(::memfd_create("b", MFD_CLOEXEC)),
                                 Descriptor(::memfd_create("stranger", MFD_CLOEXEC))};
  std::unique_ptr<DescriptorChannel> channels[2];
  for (int r = 0; r < 2; ++r)
    ASSERT_TRUE(DescriptorChannel::open(offered[r].get(), &channels[r]).ok());
  const std::vector<DescriptorAddress> addresses{channels[0]->address(), channels[1]->address()};
  const std::string greeting = catch_greeting(*channels[1], addresses[0]);
  const std::string token(reinterpret_cast<const char*>(&addresses[0].token), sizeof(uint64_t));
  const size_t token_at = greeting.find(token);
  ASSERT_NE(token_at, std::string::npos) << "a greeting carries the receiver's token";
  std::string forged = greeting;
  forged[token_at] ^= 1;
  const long files = open_files();

  std::vector<Descriptor> strangers;
  const auto stranger = [&](const std::string& packet, int descriptor) {
    strangers.push_back(connect_to(addresses[0]));
    if (!packet.empty()) send_packet(strangers.back(), packet, descriptor);
  };
  stranger(forged, offered[2].get());
  stranger("GET / HTTP/1.1\r\n\r\n", -1);
  stranger(std::string(4096, '\xff'), offered[2].get());
  stranger(greeting.substr(0, greeting.size() - 1), offered[2].get());
  stranger(greeting + "x", offered[2].get());
  for (int i = 0; i < 50; ++i) stranger("", -1);  // silent
  connect_to(addresses[0]);                       // gone at once

  run_threads(0, 2, [&](int rank) {
    int calls = 0;
    const auto receive = [&](int peer, int descriptor) {
      ++calls;
      EXPECT_EQ(peer, 1 - rank);
      struct stat got, expected;
      ASSERT_EQ(::fstat(descriptor, &got), 0);
      ASSERT_EQ(::fstat(offered[peer].get(), &expected), 0);
      EXPECT_EQ(got.st_ino, expected.st_ino);
    };
    const Status status = channels[rank]->exchange(rank, {1 - rank}, addresses, receive,
                                                   Deadline::after_ms(kPatienceMs));
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(calls, 1);
  });
  strangers.clear();
  EXPECT_EQ(open_files(), files);
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

// -------------------------------------------------------------------------------------- choice

constexpr uint32_t kHost = 1u << 0, kDescriptor = 1u << 1, kIpc = 1u << 2, kFabric = 1u << 3;

MemoryKind chosen(std::vector<uint32_t> masks, bool several_hosts) {
  MemoryKind kind = MemoryKind::host_descriptor;
  const Status status = choose_memory_kind(hepBackendCuda, masks, several_hosts, &kind);
  EXPECT_TRUE(status.ok()) << status.message();
  return kind;
}

TEST(MemoryKindChoice, TakesTheFirstThatEveryRankHas) {
  const uint32_t all = kDescriptor | kIpc | kFabric;
  EXPECT_EQ(chosen({all, all, all}, false), MemoryKind::cuda_descriptor);
  EXPECT_EQ(chosen({all, kIpc | kFabric, all}, false), MemoryKind::cuda_ipc);
  EXPECT_EQ(chosen({all, kFabric, all}, false), MemoryKind::cuda_fabric);
}

TEST(MemoryKindChoice, TakesFabricAcrossHosts) {
  EXPECT_EQ(chosen({kDescriptor | kIpc | kFabric, kDescriptor | kFabric}, true),
            MemoryKind::cuda_fabric);
}

TEST(MemoryKindChoice, NamesARankForEveryMissingKind) {
  MemoryKind kind;
  const Status one = choose_memory_kind(hepBackendCuda, {kDescriptor, kIpc, 0}, false, &kind);
  expect_error(one, hepErrorUnsupported, "cuda_descriptor on rank 1");
  expect_error(one, hepErrorUnsupported, "cuda_ipc on rank 0");
  expect_error(choose_memory_kind(hepBackendCuda, {kFabric, kIpc}, true, &kind),
               hepErrorUnreachable, "cuda_fabric on rank 1");
}

TEST(MemoryKindChoice, KeepsTheHostBackendOnOneHost) {
  MemoryKind kind = MemoryKind::cuda_ipc;
  EXPECT_TRUE(choose_memory_kind(hepBackendHost, {kHost, kHost}, false, &kind).ok());
  EXPECT_EQ(kind, MemoryKind::host_descriptor);
  expect_error(choose_memory_kind(hepBackendHost, {kHost, kHost}, true, &kind), hepErrorUnreachable,
               "several hosts");
  expect_error(choose_memory_kind(hepBackendHost, {kHost, 0}, false, &kind), hepErrorUnsupported,
               "host_descriptor on rank 1");
}

TEST(MemoryKindProbe, FindsHostMemoryWhateverTheSettingForDevices) {
  EXPECT_EQ(probe_memory_kinds(hepBackendHost, -1), kHost);
  ::setenv("HEP_MEMORY", "ipc", 1);
  EXPECT_EQ(probe_memory_kinds(hepBackendHost, -1), kHost);
  ::unsetenv("HEP_MEMORY");
}

TEST(MemoryKindProbe, ObeysTheSettingForDevices) {
  // In a child: a process that has used CUDA cannot fork any more.
  const pid_t child = fork_child([] {
    const uint32_t all = probe_memory_kinds(hepBackendCuda, 0);
    EXPECT_EQ(all & ~(kDescriptor | kIpc | kFabric), 0u);
    const std::pair<const char*, uint32_t> choices[] = {{"auto", ~0u},
                                                        {"descriptor", kDescriptor},
                                                        {"ipc", kIpc},
                                                        {"fabric", kFabric},
                                                        {"wrong", 0}};
    for (const auto& [text, mask] : choices) {
      ::setenv("HEP_MEMORY", text, 1);
      EXPECT_EQ(probe_memory_kinds(hepBackendCuda, 0), all & mask) << text;
    }
  });
  EXPECT_EQ(exit_code(child), 0);
}

// --------------------------------------------------------------------------------------- CUDA

TEST(CudaMemory, IsRefusedWithASentenceWhereThereIsNone) {
  constexpr int kHasDevice = 77;
  const pid_t child = fork_child([] {
    DeviceUuid uuid;
    const Status status = device_uuid(0, &uuid);
    if (status.ok()) ::_exit(kHasDevice);
    expect_error(status, hepErrorUnsupported, "CUDA");
    EXPECT_EQ(probe_memory_kinds(hepBackendCuda, 0), 0u);
    for (const MemoryKind kind :
         {MemoryKind::cuda_descriptor, MemoryKind::cuda_ipc, MemoryKind::cuda_fabric}) {
      std::unique_ptr<Window> window;
      expect_error(Window::create(kind, 0, kBytes, &window), hepErrorUnsupported, "CUDA");
      EXPECT_EQ(window, nullptr);
    }
  });
  const int code = exit_code(child);
  if (code == kHasDevice) GTEST_SKIP() << "there is a device";
  EXPECT_EQ(code, 0);
}

#ifdef HEP_HAVE_CUDA

class CudaWindow : public testing::TestWithParam<MemoryKind> {
 protected:
  // Ranks share the devices there are.
  static int device(int rank) {
    int count = 1;
    EXPECT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
    return rank % count;
  }

  // In a child, because a process that has used CUDA must not fork.
  static bool works() {
    return exit_code(fork_child([] {
             ::_exit(probe_memory_kinds(hepBackendCuda, 0) & memory_kind_bit(GetParam()) ? 0 : 1);
           })) == 0;
  }

  static void exchange_bytes(World& world, int rank) {
    const auto window = connect_window(world, rank, keep, GetParam(), device(rank));
    ASSERT_TRUE(window);
    ASSERT_EQ(cudaSetDevice(device(rank)), cudaSuccess);
    const int n = world.num_ranks();
    std::string bytes(kBytes, 'x');
    for (int r = 0; r < n; ++r) {
      ASSERT_EQ(cudaMemcpy(bytes.data(), window->address(r), kBytes, cudaMemcpyDefault),
                cudaSuccess);
      EXPECT_EQ(bytes, std::string(kBytes, '\0'));
    }
    ASSERT_TRUE(world.barrier());
    for (int r = 0; r < n; ++r) {
      const char word[2] = {static_cast<char>(rank + 1), static_cast<char>(r + 1)};
      ASSERT_EQ(
          cudaMemcpy(static_cast<char*>(window->address(r)) + 2 * rank, word, 2, cudaMemcpyDefault),
          cudaSuccess);
    }
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    ASSERT_TRUE(world.barrier());
    ASSERT_EQ(cudaMemcpy(bytes.data(), window->address(rank), 2 * n, cudaMemcpyDefault),
              cudaSuccess);
    for (int r = 0; r < n; ++r) {
      EXPECT_EQ(bytes[2 * r], r + 1);
      EXPECT_EQ(bytes[2 * r + 1], rank + 1);
    }
    ASSERT_TRUE(world.barrier());
  }
};
INSTANTIATE_TEST_SUITE_P(Kinds, CudaWindow,
                         testing::Values(MemoryKind::cuda_descriptor, MemoryKind::cuda_ipc,
                                         MemoryKind::cuda_fabric),
                         [](const auto& info) { return memory_kind_name(info.param); });

TEST_P(CudaWindow, IsZeroAtFirstAndSharedByProcesses) {
  if (!works()) GTEST_SKIP() << "this kind of memory does not work here";
  World world(4);
  run_processes(4, 1, [&](int rank) { exchange_bytes(world, rank); });
}

TEST_P(CudaWindow, IsSharedByThreadsAndProcesses) {
  if (!works()) GTEST_SKIP() << "this kind of memory does not work here";
  World world(4);
  run_processes(2, 2, [&](int rank) { exchange_bytes(world, rank); });
  World threads(4);
  run_processes(1, 4, [&](int rank) { exchange_bytes(threads, rank); });
}

#endif  // HEP_HAVE_CUDA

}  // namespace
