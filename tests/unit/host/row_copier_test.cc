// SPDX-License-Identifier: Apache-2.0
#include "backend/host/row_copier.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace hep {
namespace {

using Bytes = std::vector<unsigned char>;

// Copies a row from one offset to another, and expects nothing else to change.
void expect_copy(int64_t row_bytes, int64_t num_rows, int64_t from, int64_t to) {
  Bytes source(from + row_bytes);
  std::iota(source.begin(), source.end(), 1);
  Bytes target(to + row_bytes + 64, 0xcc), expected = target;
  std::copy(source.begin() + from, source.end(), expected.begin() + to);
  {
    const RowCopier copier(row_bytes, num_rows);
    copier.copy(&target[to], &source[from]);
  }
  EXPECT_EQ(target, expected) << row_bytes << " bytes, " << num_rows << " rows, to " << to;
}

TEST(RowCopier, CopiesFewRowsAndMany) {
  constexpr int64_t kFew = 1, kMany = int64_t{1} << 32;
  for (const int64_t num_rows : {kFew, kMany})
    for (const int64_t row_bytes : {16, 48, 64, 112, 128, 14336, 14352})
      for (const int64_t to : {0, 16, 48, 1, 8}) expect_copy(row_bytes, num_rows, 3, to);
}

}  // namespace
}  // namespace hep
