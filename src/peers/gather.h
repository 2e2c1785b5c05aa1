// SPDX-License-Identifier: Apache-2.0
// Keeps the contributions of ranks to the all-gathers of their group.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "peers/message.h"

namespace hep {

// Rounds are counted from 1. A rank is at most one round ahead of any other, so the latest two of
// each rank are kept. Has all its memory from the beginning.
class Gather {
 public:
  explicit Gather(size_t num_ranks) : ranks_(num_ranks) {}

  // Begins a rank's next round and returns its number.
  uint64_t begin(int rank) { return ++ranks_[rank].rounds; }

  // Keeps a contribution of at most PeerMessage::kMaxBytes bytes. Returns whether all ranks have
  // now contributed to the round.
  bool add(int rank, uint64_t round, const void* data, size_t bytes);

  // Whether a rank has contributed. A contribution of another size, which a sound peer does not
  // send, does not count.
  bool has(size_t rank, uint64_t round, size_t bytes) const;

  // Copies the contributions to `receive` [R][bytes]. Returns -1, or the first rank that is
  // missing.
  int take(uint64_t round, size_t bytes, void* receive) const;

 private:
  struct Contribution {
    uint64_t round = 0;
    size_t bytes = 0;
    std::array<char, PeerMessage::kMaxBytes> data;
  };

  struct Rank {
    uint64_t rounds = 0;  // that it has begun in this process
    std::array<Contribution, 2> latest;
    const Contribution& of(uint64_t round) const { return latest[round & 1]; }
  };

  std::vector<Rank> ranks_;
};

}  // namespace hep
