// SPDX-License-Identifier: Apache-2.0
// Threads of the library take no signals: they are the application's.
#pragma once

#include <pthread.h>
#include <signal.h>

namespace hep {

// Keeps signals from the calling thread, and from threads that it starts.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;
  ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

}  // namespace hep
