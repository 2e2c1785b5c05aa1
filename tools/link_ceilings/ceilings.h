// SPDX-License-Identifier: Apache-2.0
// The ceilings of the operations: what links and memory give without any protocol. They are
// measured on all GPUs at once.
#pragma once

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

namespace bench {

struct Ceiling {
  const char* name;
  int sms;      // 0: copy engine
  double gbps;  // bytes that the slowest GPU moved, over its time; a local copy reads and writes
                // them, and both count
};

struct Ceilings {
  std::vector<Ceiling> all;
  int gpus = 0;         // 1: the only peer is the GPU itself, "local"
  std::string skipped;  // why `all` is empty

  // Returns the faster of loads and stores with this many SMs; 0 if not measured.
  double best(int sms) const {
    double best = 0;
    for (const Ceiling& ceiling : all) {
      if (ceiling.sms == sms && sms > 0) best = std::max(best, ceiling.gbps);
    }
    return best;
  }
};

inline void print_ceiling(const Ceiling& ceiling) {
  std::printf("# %-20s %3s SMs %8.1f GB/s\n", ceiling.name,
              ceiling.sms == 0 ? "-" : std::to_string(ceiling.sms).c_str(), ceiling.gbps);
  std::fflush(stdout);
}

// Uses the first `num_gpus` GPUs of this process. Throws std::runtime_error if a CUDA call fails or
// a transfer delivered wrong bytes. A build without CUDA has ceilings_none.cc, which skips them.
Ceilings measure_ceilings(int num_gpus, const std::vector<int>& sms);

}  // namespace bench
