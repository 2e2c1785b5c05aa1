// SPDX-License-Identifier: Apache-2.0
// What the tests of the bootstrap share: ranks on threads, a count of descriptors, a stranger that
// speaks to the hub byte by byte, and an all-gather callback among threads.
#pragma once

#include <dirent.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "bootstrap/bootstrap.h"
#include "bootstrap/unique_id.h"
#include "net/address.h"
#include "net/frames.h"
#include "net/siphash.h"

namespace hep {

using std::string;
using std::vector;

constexpr int kLongMs = 30000;  // for what is expected to succeed
constexpr int kShortMs = 300;   // for what is expected to expire

inline Deadline soon() { return Deadline::after_ms(kShortMs); }
inline Deadline later() { return Deadline::after_ms(kLongMs); }

inline int open_descriptors() {
  int count = 0;
  DIR* directory = ::opendir("/proc/self/fd");
  while (::readdir(directory)) ++count;
  ::closedir(directory);
  return count;
}

inline bool comes_true(const std::function<bool()>& condition) {
  for (const Deadline deadline = later(); !deadline.expired(); ::poll(nullptr, 0, 2))
    if (condition()) return true;
  return false;
}

// No thread can be started as long as this lives: each would have a stack larger than all memory.
class NoThreads {
 public:
  NoThreads() {
    EXPECT_EQ(::pthread_getattr_default_np(&before_), 0);
    pthread_attr_t attributes = before_;
    EXPECT_EQ(::pthread_attr_setstacksize(&attributes, size_t{1} << 50), 0);
    EXPECT_EQ(::pthread_setattr_default_np(&attributes), 0);
  }
  ~NoThreads() {
    EXPECT_EQ(::pthread_setattr_default_np(&before_), 0);
    ::pthread_attr_destroy(&before_);
  }

 private:
  pthread_attr_t before_;
};

// Every test is one of descriptors too: none may be left, whatever went wrong in it.
class BootstrapTest : public testing::Test {
 protected:
  void SetUp() override { before_ = open_descriptors(); }
  void TearDown() override {
    ::unsetenv("HEP_RENDEZVOUS_ADDRESS");
    ::unsetenv("HEP_RENDEZVOUS_TIMEOUT_MS");
    EXPECT_TRUE(comes_true([this] { return open_descriptors() <= before_; }))
        << open_descriptors() << " descriptors are open, " << before_ << " were before the test";
  }

 private:
  int before_ = 0;
};

inline hepUniqueId_t new_id() {
  hepUniqueId_t id{};
  const Status status = create_unique_id(&id);
  EXPECT_TRUE(status.ok()) << status.message();
  return id;
}

inline Rendezvous contents_of(const hepUniqueId_t& id) {
  Rendezvous rendezvous;
  const Status status = read_unique_id(id, &rendezvous);
  EXPECT_TRUE(status.ok()) << status.message();
  return rendezvous;
}

inline void on_threads(int count, const std::function<void(int)>& body) {
  vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(body, i);
  for (std::thread& thread : threads) thread.join();
}

inline Status join(const hepUniqueId_t& id, int rank, int num_ranks, Deadline deadline) {
  std::unique_ptr<Bootstrap> bootstrap;
  return Bootstrap::join(id, rank, num_ranks, deadline, &bootstrap);
}

inline std::unique_ptr<Bootstrap> joined(const hepUniqueId_t& id, int rank, int num_ranks) {
  std::unique_ptr<Bootstrap> bootstrap;
  const Status status = Bootstrap::join(id, rank, num_ranks, later(), &bootstrap);
  EXPECT_TRUE(status.ok()) << status.message();
  return bootstrap;
}

inline char byte_of(int rank, size_t index, int phase) {
  return static_cast<char>(rank * 37 + index * 11 + phase * 101);
}

// What a rank of a healthy job sees; false if anything is not as it must be.
inline bool gathers_correctly(Bootstrap& bootstrap, int rank, int num_ranks) {
  const size_t sizes[] = {8, 0, 1, 4000, 3};
  for (int phase = 0; phase < 5; ++phase) {
    const size_t bytes = sizes[phase];
    vector<char> mine(bytes), all(bytes * num_ranks);
    for (size_t i = 0; i < bytes; ++i) mine[i] = byte_of(rank, i, phase);
    const string name = "phase " + std::to_string(phase);
    if (!bootstrap.all_gather(mine.data(), all.data(), bytes, name.c_str(), later()).ok())
      return false;
    for (int source = 0; source < num_ranks; ++source)
      for (size_t i = 0; i < bytes; ++i)
        if (all[source * bytes + i] != byte_of(source, i, phase)) return false;
  }
  return true;
}

inline void run_job(const hepUniqueId_t& id, int num_ranks) {
  on_threads(num_ranks, [&](int rank) {
    const auto bootstrap = joined(id, rank, num_ranks);
    EXPECT_TRUE(bootstrap && gathers_correctly(*bootstrap, rank, num_ranks)) << "rank " << rank;
  });
}

inline void expect_error(const Status& status, hepResult_t result, const vector<string>& words) {
  EXPECT_EQ(status.result(), result) << status.message();
  for (const string& word : words)
    EXPECT_NE(status.message().find(word), string::npos)
        << "no '" << word << "' in " << status.message();
}

// A connection to the hub without the manners of a rank.
class Stranger {
 public:
  explicit Stranger(const Rendezvous& rendezvous) {
    const SocketAddress address = socket_address(rendezvous.addresses[0], rendezvous.port);
    socket_ = Descriptor(::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
    connected_ = ::connect(socket_.get(), address.get(), address.length) == 0;
  }

  bool connected() const { return connected_; }

  void send(const void* data, size_t size) {
    EXPECT_EQ(::send(socket_.get(), data, size, MSG_NOSIGNAL), static_cast<ssize_t>(size));
  }

  void send_frame(const wire::FrameHeader& header, const void* payload, size_t size) {
    send(&header, sizeof header);
    send(payload, size);
  }

  wire::Nonce challenge() {
    wire::FrameHeader header{};
    wire::Challenge challenge{};
    EXPECT_TRUE(receive(&header, sizeof header) && receive(&challenge, sizeof challenge));
    EXPECT_EQ(header.type, wire::FrameType::kChallenge);
    return challenge.nonce;
  }

  // The type of the next frame; its payload is passed over.
  wire::FrameType next_type() {
    wire::FrameHeader header{};
    EXPECT_TRUE(receive(&header, sizeof header));
    vector<char> payload(header.length);
    EXPECT_TRUE(receive(payload.data(), payload.size()));
    return header.type;
  }

  void end_output() { EXPECT_EQ(::shutdown(socket_.get(), SHUT_WR), 0); }

  bool is_refused() {
    char byte;
    return !receive(&byte, 1);
  }

 private:
  bool receive(void* data, size_t size) {
    auto* to = static_cast<char*>(data);
    while (size > 0) {
      pollfd entry{socket_.get(), POLLIN, 0};
      EXPECT_EQ(::poll(&entry, 1, kLongMs), 1) << "the hub neither answered nor closed";
      const ssize_t got = ::recv(socket_.get(), to, size, MSG_DONTWAIT);
      if (got <= 0) return false;
      to += got;
      size -= got;
    }
    return true;
  }

  Descriptor socket_;
  bool connected_ = false;
};

inline wire::Join make_join(const SipKey& secret, const wire::Nonce& challenge, int rank,
                            int num_ranks, uint32_t remaining_ms = kLongMs, uint32_t visit = 0) {
  wire::Join join{{1, 2, 3}, rank, num_ranks, remaining_ms, visit, 0};
  join.proof = wire::make_proof(secret, wire::Side::kConnecting, challenge, join);
  return join;
}

const wire::FrameHeader kJoinHeader = wire::make_header(wire::FrameType::kJoin, sizeof(wire::Join));

// An all-gather among threads, as a caller's callback.
struct ThreadGather {
  int num_ranks;
  int result = 0;  // what every call returns
  std::mutex mutex;
  std::condition_variable arrived;
  vector<vector<char>> given;
  int count = 0;

  explicit ThreadGather(int ranks) : num_ranks(ranks), given(ranks) {}

  struct Member {
    ThreadGather* group;
    int rank;
    int calls = 0;
  };

  static int gather(const void* send, void* receive, size_t bytes, void* context) {
    auto* member = static_cast<Member*>(context);
    ThreadGather& group = *member->group;
    ++member->calls;
    std::unique_lock<std::mutex> lock(group.mutex);
    const auto* from = static_cast<const char*>(send);
    group.given[member->rank].assign(from, from + bytes);
    ++group.count;
    group.arrived.notify_all();
    group.arrived.wait(lock, [&] { return group.count == group.num_ranks; });
    for (int i = 0; i < group.num_ranks; ++i)
      std::memcpy(static_cast<char*>(receive) + i * bytes, group.given[i].data(), bytes);
    return group.result;
  }
};

}  // namespace hep
