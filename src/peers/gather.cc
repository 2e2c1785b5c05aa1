// SPDX-License-Identifier: Apache-2.0
#include "peers/gather.h"

#include <algorithm>
#include <cstring>

namespace hep {

bool Gather::add(int rank, uint64_t round, const void* data, size_t bytes) {
  Contribution& contribution = ranks_[rank].latest[round & 1];
  contribution.round = round;
  contribution.bytes = bytes;
  std::memcpy(contribution.data.data(), data, bytes);
  return std::all_of(ranks_.begin(), ranks_.end(),
                     [round](const Rank& other) { return other.of(round).round == round; });
}

bool Gather::has(size_t rank, uint64_t round, size_t bytes) const {
  const Contribution& contribution = ranks_[rank].of(round);
  return contribution.round == round && contribution.bytes == bytes;
}

int Gather::take(uint64_t round, size_t bytes, void* receive) const {
  for (size_t rank = 0; rank < ranks_.size(); ++rank) {
    if (!has(rank, round, bytes)) return static_cast<int>(rank);
    std::memcpy(static_cast<char*>(receive) + rank * bytes, ranks_[rank].of(round).data.data(),
                bytes);
  }
  return -1;
}

}  // namespace hep
