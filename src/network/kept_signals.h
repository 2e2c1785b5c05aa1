// SPDX-License-Identifier: Apache-2.0
// Signal dispositions are the application's. Some libraries install handlers when they are opened.
#pragma once

#include <signal.h>

#include <array>

#include "base/blocked_signals.h"
#include "base/thread_annotations.h"

namespace hep {

// Restores at its end the dispositions that have changed since its begin. Threads that start
// meanwhile take no signals. One at a time in a process.
class HEP_SCOPED_CAPABILITY KeptSignals {
 public:
  KeptSignals() HEP_ACQUIRE(mutex()) : lock_(mutex()) {
    for (int number = 1; number < NSIG; ++number)
      known_[number] = ::sigaction(number, nullptr, &before_[number]) == 0;
  }

  ~KeptSignals() HEP_RELEASE() {
    for (int number = 1; number < NSIG; ++number) {
      struct sigaction now {};
      if (known_[number] && ::sigaction(number, nullptr, &now) == 0 &&
          (now.sa_handler != before_[number].sa_handler ||
           now.sa_flags != before_[number].sa_flags))
        ::sigaction(number, &before_[number], nullptr);
    }
  }

  KeptSignals(const KeptSignals&) = delete;
  KeptSignals& operator=(const KeptSignals&) = delete;

 private:
  // Never destroyed: a communicator may be created at exit.
  static Mutex& mutex() {
    static Mutex* const mutex = new Mutex;
    return *mutex;
  }

  const Lock lock_;
  const BlockedSignals blocked_;
  std::array<struct sigaction, NSIG> before_{};
  std::array<bool, NSIG> known_{};
};

}  // namespace hep
