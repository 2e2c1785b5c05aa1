// SPDX-License-Identifier: Apache-2.0
// Mutexes of the process that outlive a call. A thread of the parent may hold one at the moment of a
// fork. The child does not have that thread, so it would wait for it for ever.
#pragma once

#include "base/thread_annotations.h"

namespace hep {

// Every fork takes this mutex first, and both processes release it. It lives for ever, and whoever
// holds it takes no other.
class HEP_CAPABILITY("mutex") HeldOverForks : public Mutex {
 public:
  HeldOverForks();
};

// Must come before a handler of pthread_atfork for mutexes whose holders take one of the above: of two
// handlers, a fork runs the one that was installed later first.
void install_fork_handler();

}  // namespace hep
