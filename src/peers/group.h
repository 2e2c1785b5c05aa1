// SPDX-License-Identifier: Apache-2.0
// A group carries news among the ranks of a communicator. A rank tells its peers that it leaves,
// that it has failed, and what it contributes to an all-gather. A process that is gone tells
// nothing; the end of its connection does. The ranks of a process share one group. It has one
// connection to each other process and one thread that listens.
#pragma once

#include <hybridep.h>
#include <poll.h>
#include <sys/types.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "base/deadline.h"
#include "base/descriptor.h"
#include "base/status.h"
#include "base/thread_annotations.h"
#include "peers/gather.h"
#include "peers/links.h"
#include "peers/message.h"

namespace hep {

// A rank tells this of its failure.
struct PeerFailure {
  int rank;
  hepResult_t result;
  int missing_rank;  // -1: none
  std::string sentence;
};

// Hears for one rank what happens to its peers. The group calls it from any thread, one call at a
// time. It must not call the group. A call that throws because memory has run out is made again.
class PeerListener {
 public:
  virtual ~PeerListener() = default;
  virtual void peer_left(int rank) noexcept = 0;  // it signals nothing more, and nothing is wrong
  virtual void peer_lost(int rank) = 0;           // its process is gone without a word
  virtual void peer_failed(const PeerFailure& failure) = 0;

  // The group calls it from time to time where it was asked to. Returns true and the failure if
  // this rank itself has failed.
  virtual bool poll_local_failure(PeerFailure* own) = 0;
};

// Has all ranks of a communicator as one process sees them. Thread-safe except open() and
// connect().
class PeerGroup {
 public:
  // `processes` [R] is the same number for ranks of the same process.
  PeerGroup(const std::vector<uint64_t>& processes, int rank);
  ~PeerGroup();

  // These three run before any rank takes part. They take no lock, so that a fork need not wait
  // for them.
  Status open() HEP_NO_THREAD_SAFETY_ANALYSIS;
  const LinkAddress& address() const HEP_NO_THREAD_SAFETY_ANALYSIS { return links_.address(); }
  Status connect(const std::vector<LinkAddress>& addresses,
                 Deadline deadline) HEP_NO_THREAD_SAFETY_ANALYSIS;

  bool is_lowest(int rank) const { return first_ranks_[own_process_] == rank; }
  bool is_alone() const { return first_ranks_.size() == 1; }

  Status start_thread() HEP_EXCLUDES(mutex_);

  // From now on the rank takes part, and its listener hears what happens. It hears at once what has
  // happened already.
  void subscribe(int rank, PeerListener& listener, bool looks_around) HEP_EXCLUDES(mutex_);
  void unsubscribe(int rank) noexcept HEP_EXCLUDES(mutex_);

  // Tell all that a rank of this process has failed, or leaves. The first failure counts.
  void report(const PeerFailure& failure) HEP_EXCLUDES(mutex_);
  void leave(int rank) noexcept HEP_EXCLUDES(mutex_);

  // Copies the `bytes` bytes at `send` of every rank to `receive` [R][bytes] of every rank. Each
  // rank calls it from a thread of its own, as often as the others. Ends early when a rank fails,
  // or leaves without having contributed; *missing is then that rank, or the first that did not
  // come in time.
  Status all_gather(int rank, const void* send, void* receive, size_t bytes, Deadline deadline,
                    int* missing) HEP_EXCLUDES(mutex_);
  static constexpr size_t kMaxGatherBytes = PeerMessage::kMaxBytes;

  // The ranks of this process leave, and no listener is called any more. The thread runs on while
  // memory that listeners read, such as that of CUDA, goes away.
  void leave_at_exit() noexcept HEP_EXCLUDES(mutex_);

  // A fork holds the mutex, so that nothing changes meanwhile. The child closes the connections,
  // because one that it held open would hide the end of its parent.
  Mutex& mutex() HEP_RETURN_CAPABILITY(mutex_) { return mutex_; }
  void forget_in_child() HEP_REQUIRES(mutex_);

 private:
  // Says what a listener has been told of a rank.
  struct Told {
    bool left = false, lost = false, failed = false;
  };

  // Has what is known of a rank.
  struct Peer {
    bool left = false, lost = false, failed = false;
    PeerMessage failure{};  // what it said when it failed

    // Ranks of other processes do not use these.
    bool started = false;  // takes part
    PeerListener* listener = nullptr;
    bool looks_around = false;
    std::vector<Told> told;  // by rank
  };

  // Collects a message of a process until it has arrived whole.
  struct Inbox {
    PeerMessage message;
    size_t bytes = 0;
  };

  void run() noexcept HEP_EXCLUDES(mutex_);
  bool watch() HEP_EXCLUDES(mutex_);
  int poll_links() HEP_EXCLUDES(mutex_);
  void poll_local_failure() HEP_REQUIRES(mutex_);
  void read(int process) HEP_REQUIRES(mutex_);
  bool is_sound(int process, const PeerMessage& message) const HEP_REQUIRES(mutex_);
  void take(int process, const PeerMessage& message) HEP_REQUIRES(mutex_);
  void lose(int process) HEP_REQUIRES(mutex_);
  void announce(const PeerMessage& message) HEP_REQUIRES(mutex_);
  void record(const PeerMessage& message) HEP_REQUIRES(mutex_);
  void send(const PeerMessage& message) HEP_REQUIRES(mutex_);
  void deliver() HEP_REQUIRES(mutex_);
  static void tell(PeerListener& listener, int rank, const Peer& peer, Told& told);
  void contribute(const PeerMessage& message) HEP_REQUIRES(mutex_);
  Status reason_to_give_up(uint64_t round, size_t bytes, int* missing) const HEP_REQUIRES(mutex_);

  const pid_t process_ = ::getpid();
  std::vector<int> first_ranks_;  // by process
  std::vector<int> process_of_;   // by rank
  int own_process_;

  Mutex mutex_;
  std::vector<Peer> peers_ HEP_GUARDED_BY(mutex_);
  Gather gather_ HEP_GUARDED_BY(mutex_);
  std::condition_variable changed_;  // a peer, or a round of gather_ is complete
  Links links_ HEP_GUARDED_BY(mutex_);
  std::vector<Inbox> inboxes_ HEP_GUARDED_BY(mutex_);  // by process
  bool ending_ HEP_GUARDED_BY(mutex_) = false;

  Descriptor wake_ HEP_GUARDED_BY(mutex_);
  std::thread thread_ HEP_GUARDED_BY(mutex_);
  std::vector<pollfd> polled_;  // of the thread: wake_, then the links
};

}  // namespace hep
