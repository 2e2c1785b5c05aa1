// SPDX-License-Identifier: Apache-2.0
#include "base/fork.h"

#include <pthread.h>

#include <vector>

namespace hep {
namespace {

// This is never destroyed, because a process may fork at exit. Clang cannot follow the locks of a
// list of mutexes.
class ForkMutexes {
 public:
  static ForkMutexes& instance() {
    static ForkMutexes* const mutexes = new ForkMutexes;
    return *mutexes;
  }

  void add(Mutex& mutex) {
    const Lock lock(mutex_);
    mutexes_.push_back(&mutex);
  }

 private:
  ForkMutexes() {
    ::pthread_atfork([] { instance().lock(); }, [] { instance().unlock(); },
                     [] { instance().unlock(); });
  }

  void lock() noexcept HEP_NO_THREAD_SAFETY_ANALYSIS {
    mutex_.lock();
    for (Mutex* mutex : mutexes_) mutex->lock();
  }

  void unlock() noexcept HEP_NO_THREAD_SAFETY_ANALYSIS {
    for (Mutex* mutex : mutexes_) mutex->unlock();
    mutex_.unlock();
  }

  Mutex mutex_;
  std::vector<Mutex*> mutexes_ HEP_GUARDED_BY(mutex_);
};

}  // namespace

HeldOverForks::HeldOverForks() { ForkMutexes::instance().add(*this); }

void install_fork_handler() { ForkMutexes::instance(); }

}  // namespace hep
