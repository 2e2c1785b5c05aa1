// SPDX-License-Identifier: Apache-2.0
// Work of the host alone, spread over threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace bench {

// Calls body(i) for 0 <= i < count; `sharers` callers do so at once. The body must not throw.
template <typename Body>
void parallel_for(int64_t count, int sharers, const Body& body) {
  const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
  const int64_t threads = std::min(count, std::max<int64_t>(1, cores / sharers));
  const auto part = [&](int64_t thread) {
    for (int64_t i = count * thread / threads; i < count * (thread + 1) / threads; ++i) body(i);
  };
  std::vector<std::thread> others;
  for (int64_t thread = 1; thread < threads; ++thread) others.emplace_back(part, thread);
  if (threads > 0) part(0);
  for (std::thread& other : others) other.join();
}

}  // namespace bench
