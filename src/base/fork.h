// SPDX-License-Identifier: Apache-2.0
// Global mutexes and fork. A thread of the parent may hold a mutex at the moment of a fork. The
// child does not have that thread, so it would wait for ever.
#pragma once

#include "base/thread_annotations.h"

namespace hep {

// Every fork takes this mutex first, and both processes release it. The mutex must live for ever. A
// thread that holds it must take no other.
class HEP_CAPABILITY("mutex") HeldOverForks : public Mutex {
 public:
  HeldOverForks();
};

// Call this before pthread_atfork for mutexes whose holders take one of the above. A fork runs the
// handler that was installed last first.
void install_fork_handler();

}  // namespace hep
