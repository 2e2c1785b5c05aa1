// SPDX-License-Identifier: Apache-2.0
#include "inputs.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "oracle/formats.h"
#include "parallel.h"

namespace bench {
namespace {

// This is the finalizer of SplitMix64.
uint64_t hash(uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

uint64_t hash(uint64_t a, uint64_t b) { return hash(hash(a) ^ b); }

// Returns a number from 0 to 1.
double unit(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

template <typename T, typename Make>
void fill_table(ValueTable* table, const Make& make) {
  parallel_for(kNumValues, 1, [&](int64_t i) {
    const T value = make(i);
    std::memcpy(&table->data[i * sizeof(T)], &value, sizeof(T));
  });
}

ValueTable make_table(hepDataType_t type, uint64_t seed) {
  ValueTable table;
  const auto number = [=](int64_t i) { return static_cast<float>(2 * unit(hash(seed, i)) - 1); };
  const auto allocate = [&](int element_bytes) {
    table.element_bytes = element_bytes;
    table.data.resize(kNumValues * element_bytes);
  };
  switch (type) {
    case hepTypeFloat32:
      allocate(4);
      fill_table<float>(&table, number);
      break;
    case hepTypeFloat16:
      allocate(2);
      fill_table<uint16_t>(&table, [&](int64_t i) {
        return static_cast<uint16_t>(formats::encode(formats::kFloat16, number(i)));
      });
      break;
    case hepTypeBfloat16:
      allocate(2);
      fill_table<uint16_t>(&table, [&](int64_t i) {
        const float value = number(i);
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        return static_cast<uint16_t>(bits >> 16);
      });
      break;
    default:  // other types are forwarded bit for bit, so any numbers will do
      allocate(1);
      fill_table<uint8_t>(&table, [&](int64_t i) { return static_cast<uint8_t>(hash(seed, i)); });
  }
  return table;
}

// Draws one expert by a distribution; k is the selection's index in its token.
class Drawer {
 public:
  Drawer(Distribution routing, int experts, int num_ranks)
      : routing_(routing),
        experts_(experts),
        num_ranks_(num_ranks),
        per_rank_(experts / num_ranks) {
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

int32_t row_start(Matrix matrix, int rank, int64_t row) {
  constexpr uint64_t kStep = 2654435761u;  // odd: rows of one matrix begin at different places
  const uint64_t origin = hash(static_cast<uint64_t>(matrix) + 77, rank);
  return static_cast<int32_t>((origin + static_cast<uint64_t>(row) * kStep) % uint64_t{kRowStarts});
}

std::vector<int32_t> row_starts(Matrix matrix, int rank, int64_t rows) {
  std::vector<int32_t> starts(rows);
  for (int64_t row = 0; row < rows; ++row) starts[row] = row_start(matrix, rank, row);
  return starts;
}

Values::Values(uint64_t seed, const std::set<hepDataType_t>& types) {
  for (const hepDataType_t type : types) tables_.emplace(type, make_table(type, seed));
}

std::set<hepDataType_t> types_of(const std::vector<Shape>& shapes) {
  std::set<hepDataType_t> types;
  for (const Shape& shape : shapes) {
    types.insert(shape.format.type);
    types.insert(shape.format.x_type());
    if (shape.format.has_scales()) types.insert(hepTypeFloat32);
  }
  return types;
}

Workload::Workload(const Shape& shape, int experts, uint64_t seed, int num_ranks)
    : shape_(shape), experts_(experts), seed_(seed), num_ranks_(num_ranks) {
  for (auto& set : indices_) set.resize(num_ranks);
  parallel_for(2 * num_ranks, 1, [&](int64_t i) {
    const int set = static_cast<int>(i % 2), rank = static_cast<int>(i / 2);
    indices_[set][rank] = make_indices(set, rank);
  });
}

std::vector<int32_t> Workload::make_indices(int set, int rank) const {
  constexpr int kAttempts = 1000;  // a token that wants nearly all experts takes the next free one
  const Drawer drawer(shape_.routing, experts_, num_ranks_);
  const int top_k = shape_.top_k, tokens = shape_.tokens_of(rank, num_ranks_);
  uint64_t state = hash(hash(seed_, 1 + set), rank);
  std::vector<int32_t> indices(static_cast<size_t>(tokens) * top_k);
  for (int token = 0; token < tokens; ++token) {
    int32_t* mine = &indices[static_cast<size_t>(token) * top_k];
    for (int k = 0; k < top_k; ++k) {
      const auto taken = [&](int expert) { return std::find(mine, mine + k, expert) != mine + k; };
      int expert = drawer.draw(k, state = hash(state));
      for (int i = 0; i < kAttempts && taken(expert); ++i) {
        expert = drawer.draw(k, state = hash(state));
      }
      while (taken(expert)) expert = (expert + 1) % experts_;
      mine[k] = expert;
    }
  }
  return indices;
}

std::vector<float> Workload::weights(int rank) const {
  std::vector<float> weights(static_cast<size_t>(shape_.tokens_of(rank, num_ranks_)) *
                             shape_.top_k);
  const uint64_t key = hash(seed_, 1000 + rank);
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(unit(hash(key, i)));
  return weights;
}

}  // namespace bench
