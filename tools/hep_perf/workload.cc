// SPDX-License-Identifier: Apache-2.0
#include "workload.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace perf {
namespace {

// Rows begin at one of this many places: a power of two, so that an odd step visits them all.
constexpr uint64_t kRowStarts = uint64_t{1} << 22;

// A counter-based generator (the finalizer of SplitMix64).
uint64_t hash(uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

uint64_t hash(uint64_t a, uint64_t b) { return hash(hash(a) ^ b); }

double unit(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

// Draws one expert by a distribution; k is the selection's index in its token.
class Drawer {
 public:
  Drawer(const Options& options, int num_ranks)
      : routing_(options.routing),
        experts_(options.experts),
        num_ranks_(num_ranks),
        per_rank_(options.experts / num_ranks) {
    if (routing_ != Distribution::kZipf) return;
    double sum = 0;
    for (int p = 0; p < experts_; ++p) cumulative_.push_back(sum += 1.0 / (p + 1));
    for (double& value : cumulative_) value /= sum;
  }

  int draw(int k, uint64_t random) const {
    const uint64_t pick = hash(random);
    switch (routing_) {
      case Distribution::kUniform: break;
      case Distribution::kHotRank:
        if (random & 1) return static_cast<int>(pick % per_rank_);
        break;
      case Distribution::kHotExpert:
        if (k == 0) return 0;
        break;
      case Distribution::kZipf: {
        const auto it = std::lower_bound(cumulative_.begin(), cumulative_.end(), unit(pick));
        const int p = std::min<int>(it - cumulative_.begin(), experts_ - 1);
        return p % num_ranks_ * per_rank_ + p / num_ranks_;  // the wanted ones on different ranks
      }
    }
    return static_cast<int>(pick % experts_);
  }

 private:
  Distribution routing_;
  int experts_, num_ranks_, per_rank_;
  std::vector<double> cumulative_;
};

}  // namespace

Workload::Workload(const Options& options, int num_ranks)
    : options_(options), num_ranks_(num_ranks) {
  values_.resize(kRowStarts + options.hidden);
  for (size_t i = 0; i < values_.size(); ++i) {
    values_[i] = to_bf16(static_cast<float>(2 * unit(hash(options.seed, i)) - 1));
  }
  for (int set = 0; set < 2; ++set) {
    for (int rank = 0; rank < num_ranks; ++rank) indices_[set].push_back(make_indices(set, rank));
  }
}

std::vector<int32_t> Workload::make_indices(int set, int rank) const {
  constexpr int kAttempts = 1000;  // a token that wants nearly all experts takes the next free one
  const Drawer drawer(options_, num_ranks_);
  const int top_k = options_.top_k;
  uint64_t state = hash(hash(options_.seed, 1 + set), rank);
  std::vector<int32_t> indices(static_cast<size_t>(options_.tokens) * top_k);
  for (int token = 0; token < options_.tokens; ++token) {
    int32_t* mine = &indices[static_cast<size_t>(token) * top_k];
    for (int k = 0; k < top_k; ++k) {
      const auto taken = [&](int expert) { return std::find(mine, mine + k, expert) != mine + k; };
      int expert = drawer.draw(k, state = hash(state));
      for (int i = 0; i < kAttempts && taken(expert); ++i) {
        expert = drawer.draw(k, state = hash(state));
      }
      while (taken(expert)) expert = (expert + 1) % options_.experts;
      mine[k] = expert;
    }
  }
  return indices;
}

std::vector<float> Workload::weights(int rank) const {
  std::vector<float> weights(static_cast<size_t>(options_.tokens) * options_.top_k);
  const uint64_t key = hash(options_.seed, 1000 + rank);
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(unit(hash(key, i)));
  return weights;
}

const uint16_t* Workload::row(Matrix matrix, int rank, int64_t row) const {
  constexpr uint64_t kStep = 2654435761u;  // odd: rows of one matrix begin at different places
  const uint64_t origin = hash(static_cast<uint64_t>(matrix) + 77, rank);
  return &values_[(origin + static_cast<uint64_t>(row) * kStep) % kRowStarts];
}

}  // namespace perf
