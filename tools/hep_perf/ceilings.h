// SPDX-License-Identifier: Apache-2.0
// What the links and the memory give without any protocol: the ceilings that the operations are
// held against. Measured on all GPUs at once.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

namespace perf {

struct Ceiling {
  enum class Kind { kCopyEngineRing, kLoadFromPeers, kStoreToPeers, kLocalCopy };
  Kind kind;
  int sms;      // 0: copy engine
  double gbps;  // bytes that the slowest GPU moved, over its time; a local copy reads and writes
                // them, and both count
};

struct Ceilings {
  std::vector<Ceiling> all;
  int gpus = 0;         // 1: the only peer is the GPU itself, "local"
  std::string skipped;  // why `all` is empty
  bool failed = false;  // not only skipped

  // The faster of loads and stores with so many SMs; 0 if not measured.
  double best(int sms) const {
    double best = 0;
    for (const Ceiling& ceiling : all) {
      if (ceiling.sms == sms && sms > 0) best = std::max(best, ceiling.gbps);
    }
    return best;
  }
};

inline const char* ceiling_name(Ceiling::Kind kind) {
  switch (kind) {
    case Ceiling::Kind::kCopyEngineRing: return "copy engine ring";
    case Ceiling::Kind::kLoadFromPeers: return "TMA load from peers";
    case Ceiling::Kind::kStoreToPeers: return "TMA store to peers";
    case Ceiling::Kind::kLocalCopy: return "local copy";
  }
  return "?";
}

// Uses the first `num_gpus` GPUs of this process. Throws std::runtime_error if a CUDA call fails or
// a transfer delivered wrong bytes.
Ceilings measure_ceilings(int num_gpus, const std::vector<int>& sms);

}  // namespace perf
