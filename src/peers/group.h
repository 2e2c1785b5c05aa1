// SPDX-License-Identifier: Apache-2.0
// What the ranks of a communicator tell each other beside the data: that they leave, that they have
// failed, and what they contribute to an all-gather; and what nobody tells, that a process is gone. The
// ranks of a process share one group, with one connection to each other process and one thread that
// listens.
#pragma once

#include <hybridep.h>
#include <poll.h>
#include <sys/types.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "deadline.h"
#include "descriptor.h"
#include "peers/links.h"
#include "status.h"

namespace hep {

// What a rank tells of its failure.
struct PeerFailure {
  int rank;
  hepResult_t result;
  int missing_rank;  // -1: none
  std::string sentence;
};

// A rank's ear. Called from any thread, one call at a time; must not call the group.
class PeerListener {
 public:
  virtual ~PeerListener() = default;
  virtual void peer_left(int rank) = 0;  // it will signal nothing more; nothing is wrong
  virtual void peer_lost(int rank) = 0;  // its process is gone, without a word
  virtual void peer_failed(const PeerFailure& failure) = 0;

  // Called from time to time where the group was asked to: true and the failure if this rank itself
  // has failed.
  virtual bool look_around(PeerFailure* own) = 0;
};

enum class PeerEvent : uint32_t { kLeft = 1, kFailed = 2, kContributed = 3 };

struct PeerMessage;

// All ranks of a communicator as one process sees them. Thread-safe, open() and connect() excepted.
class PeerGroup {
 public:
  // `processes` [R] is the same number for ranks of the same process.
  PeerGroup(const std::vector<uint64_t>& processes, int rank);
  ~PeerGroup();

  Status open();
  const LinkAddress& address() const { return links_.address(); }
  Status connect(const std::vector<LinkAddress>& addresses, Deadline deadline);

  bool is_lowest(int rank) const { return first_ranks_[own_process_] == rank; }
  bool is_alone() const { return first_ranks_.size() == 1; }

  Status start_thread();
  void listen(int rank, PeerListener* listener, bool looks_around);
  void announce(PeerEvent event, const PeerFailure& what);

  // Copies the `bytes` bytes at `send` of every rank to `receive` [R][bytes] of every rank. Each rank
  // calls it from a thread of its own, as often as the others. Ends early when a rank fails, or leaves
  // without having contributed; *missing is then that rank, or the first that did not come in time.
  Status all_gather(int rank, const void* send, void* receive, size_t bytes, Deadline deadline,
                    int* missing);
  static constexpr size_t kMaxGatherBytes = 992;

  // The ranks of this process leave, and nobody is called any more: the thread runs on while what
  // listeners read, such as memory of CUDA, goes away.
  void leave_at_exit();

  // Around a fork: nothing changes meanwhile. A child closes the connections, because one that it held
  // open would hide the end of its parent.
  std::mutex& mutex() { return mutex_; }
  void forget_in_child();

 private:
  // To an all-gather, of which the rounds are counted from 1.
  struct Contribution {
    uint64_t round = 0;
    std::vector<char> bytes;
  };

  // What is known of a rank.
  struct Peer {
    bool started = false;  // of this process's ranks: takes part
    bool left = false, lost = false, failed = false;
    PeerFailure failure{};
    PeerListener* listener = nullptr;  // of this process's ranks
    bool looks_around = false;
    uint64_t rounds = 0;            // of this process's ranks: all-gathers that it took part in
    Contribution contributions[2];  // to its latest two: a rank is at most one ahead of any other
  };

  void run();
  bool watch();
  std::vector<pollfd> descriptors_to_watch(bool* looks_around);
  void read(int process);
  void take(int process, const PeerMessage& message);
  void lose(int process);
  void apply(PeerEvent event, const PeerFailure& what);
  void announce_locked(PeerEvent event, const PeerFailure& what);
  void send(const PeerMessage& message);
  void contribute(const PeerMessage& message);
  bool has_contributed(size_t rank, uint64_t round, size_t bytes) const;
  bool take_contributions(uint64_t round, size_t bytes, void* receive, int* missing) const;
  Status reason_to_give_up(uint64_t round, size_t bytes, int* missing) const;
  static void tell(PeerListener& listener, int rank, const Peer& peer);

  const pid_t process_ = ::getpid();
  std::vector<int> first_ranks_;  // by process
  std::vector<int> process_of_;   // by rank
  int own_process_;

  std::mutex mutex_;  // guards what follows
  std::vector<Peer> peers_;
  std::condition_variable changed_;  // a peer
  Links links_;
  std::vector<std::vector<char>> inboxes_;  // by process: a message that has not arrived whole
  bool ending_ = false;

  Descriptor wake_;
  std::thread thread_;
};

}  // namespace hep
