// SPDX-License-Identifier: Apache-2.0
// The inputs of all ranks. They depend on the seed alone, so every rank knows what every other rank
// sent.
#pragma once

#include <hybridep.h>

#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "options.h"

namespace bench {

// The matrix that a row belongs to; rows of different matrices have different contents.
enum class Matrix { kTokens, kExpertOutputs, kScales };

// A table holds the numbers of one type. Every row of every matrix is a stretch of it. Rows begin
// at one of kRowStarts elements: a power of two, so that an odd step visits them all.
constexpr int64_t kRowStarts = int64_t{1} << 22;
constexpr int64_t kMaxHidden = 65536;  // 64 KiB of bytes, the longest row that the library takes
constexpr int64_t kNumValues = kRowStarts + kMaxHidden;

// Returns where in the table a row of a rank's matrix begins.
int32_t row_start(Matrix matrix, int rank, int64_t row);
std::vector<int32_t> row_starts(Matrix matrix, int rank, int64_t rows);  // of the first rows

struct ValueTable {
  int element_bytes;
  std::vector<char> data;

  const char* at(int32_t start) const { return &data[int64_t{start} * element_bytes]; }
};

class Values {
 public:
  Values(uint64_t seed, const std::set<hepDataType_t>& types);

  const ValueTable& of(hepDataType_t type) const { return tables_.at(type); }
  const std::map<hepDataType_t, ValueTable>& all() const { return tables_; }

 private:
  std::map<hepDataType_t, ValueTable> tables_;
};

// Returns the types of all inputs, rows and scales of these shapes.
std::set<hepDataType_t> types_of(const std::vector<Shape>& shapes);

// The choices of all ranks' tokens, and their weights.
class Workload {
 public:
  Workload(const Shape& shape, int experts, uint64_t seed, int num_ranks);

  // [tokens][top_k] expert ids of a rank. Set 0 is the one that dispatch and combine use; set 1
  // differs and only alternates with it in routing updates.
  const std::vector<int32_t>& indices(int set, int rank) const { return indices_[set][rank]; }

  // [tokens][top_k], between 0 and 1.
  std::vector<float> weights(int rank) const;

 private:
  std::vector<int32_t> make_indices(int set, int rank) const;

  Shape shape_;
  int experts_;
  uint64_t seed_;
  int num_ranks_;
  std::vector<std::vector<int32_t>> indices_[2];
};

}  // namespace bench
