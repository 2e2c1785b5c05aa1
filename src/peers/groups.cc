// SPDX-License-Identifier: Apache-2.0
#include "peers/groups.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <new>

#include "base/fork.h"
#include "base/thread_annotations.h"

namespace hep {
namespace {

// The groups by communicator. It is never destroyed, because communicators may outlive static
// objects.
class Groups {
 public:
  static Groups& instance() {
    static Groups* const groups = new Groups;
    return *groups;
  }

  std::shared_ptr<PeerGroup> join(uint64_t communicator, const std::vector<uint64_t>& processes,
                                  int rank) {
    const Lock lock(mutex_);
    for (auto entry = entries_.begin(); entry != entries_.end();)
      entry = entry->second.expired() ? entries_.erase(entry) : std::next(entry);
    std::weak_ptr<PeerGroup>& entry = entries_[communicator];
    std::shared_ptr<PeerGroup> group = entry.lock();
    if (group != nullptr) return group;
    group = std::make_shared<PeerGroup>(processes, rank);
    entry = group;
    process_ = ::getpid();
    return group;
  }

  // A process that ends in good order leaves the communicators that it did not destroy.
  void leave_at_exit() {
    if (process_ != ::getpid()) return;  // a forked child does not speak for its parent
    std::vector<std::shared_ptr<PeerGroup>> alive;
    {
      const Lock lock(mutex_);
      alive = all();
    }
    for (const auto& group : alive) group->leave_at_exit();
  }

  // Clang cannot follow the locks of a number of groups, from one call to the next.
  void before_fork() noexcept HEP_NO_THREAD_SAFETY_ANALYSIS {
    mutex_.lock();
    try {
      in_fork_ = all();
    } catch (const std::bad_alloc&) {
      in_fork_.clear();  // the child will keep connections open
    }
    for (const auto& group : in_fork_) group->mutex().lock();
  }

  void after_fork(bool in_child) noexcept HEP_NO_THREAD_SAFETY_ANALYSIS {
    for (const auto& group : in_fork_) {
      if (in_child) group->forget_in_child();
      group->mutex().unlock();
    }
    // These may be the last to hold a group, which must not go under the lock.
    const auto released = std::move(in_fork_);
    in_fork_.clear();
    mutex_.unlock();
  }

 private:
  Groups() {
    // Whoever holds a group's mutex may look up handles or write to the log.
    install_fork_handler();
    ::pthread_atfork([] { instance().before_fork(); }, [] { instance().after_fork(false); },
                     [] { instance().after_fork(true); });
  }

  std::vector<std::shared_ptr<PeerGroup>> all() const HEP_REQUIRES(mutex_) {
    std::vector<std::shared_ptr<PeerGroup>> groups;
    for (const auto& entry : entries_)
      if (auto group = entry.second.lock()) groups.push_back(std::move(group));
    return groups;
  }

  Mutex mutex_;
  std::map<uint64_t, std::weak_ptr<PeerGroup>> entries_ HEP_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<PeerGroup>> in_fork_ HEP_GUARDED_BY(mutex_);
  std::atomic<pid_t> process_{0};  // the latest in which a group was made
};

struct LeaveAtExit {
  ~LeaveAtExit() { Groups::instance().leave_at_exit(); }
};

}  // namespace

std::shared_ptr<PeerGroup> join_group(uint64_t communicator, const std::vector<uint64_t>& processes,
                                      int rank) {
  static const LeaveAtExit leave_at_exit;
  return Groups::instance().join(communicator, processes, rank);
}

}  // namespace hep
