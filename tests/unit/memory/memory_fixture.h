// SPDX-License-Identifier: Apache-2.0
// What the tests of shared memory have in common: ranks as threads and as processes, a way for them
// to exchange handles without the code under test, and counts of what a process holds.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "memory/window.h"

namespace hep {

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

inline void run_threads(int first, int count, const Body& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(body, first + i);
  for (std::thread& thread : threads) thread.join();
}

// The child ends with exit code 0 if no assertion failed in it; returns its process id.
inline pid_t fork_child(const std::function<void()>& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    body();
    std::fflush(nullptr);
    ::_exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  return child;
}

inline int exit_code(pid_t child) {
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

inline void run_processes(int count, int threads, const Body& body) {
  std::vector<pid_t> children;
  for (int p = 0; p < count; ++p)
    children.push_back(fork_child([&] { run_threads(p * threads, threads, body); }));
  for (const pid_t child : children) EXPECT_EQ(exit_code(child), 0);
}

// What a test does to the handles on their way.
using Change = void (*)(WindowHandle&);
inline void keep(WindowHandle&) {}
// Ranks of this process then treat each other as those of another one.
inline void pretend_other_process(WindowHandle& handle) { handle.process ^= 1; }
// Sockets then lead nowhere, as if they were in another network namespace.
inline void lose_sockets(WindowHandle& handle) {
  handle.process ^= 1;
  handle.descriptor.socket_name[0] = 'X';
}

inline std::unique_ptr<Window> connect_window(World& world, int rank, Change change,
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
inline void exchange_words(World& world, int rank, Change change) {
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

inline long open_files() {
  const std::filesystem::directory_iterator files("/proc/self/fd");
  return std::distance(begin(files), end(files));
}

inline long window_mappings() {
  std::ifstream maps("/proc/self/maps");
  long count = 0;
  for (std::string line; std::getline(maps, line);)
    count += line.find("/memfd:hybridep") != std::string::npos;
  return count;
}

inline void expect_error(const Status& status, hepResult_t result, const std::string& part) {
  EXPECT_EQ(status.result(), result);
  EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
}

}  // namespace hep
