// SPDX-License-Identifier: Apache-2.0
#include "base/sentence.h"

#include <gtest/gtest.h>

#include <numeric>

namespace hep {
namespace {

TEST(RankList, NamesSingleRanksAndRanges) {
  EXPECT_EQ(rank_list({3}), "rank 3");
  EXPECT_EQ(rank_list({1, 2}), "ranks 1, 2");
  EXPECT_EQ(rank_list({3, 0, 2}), "ranks 0, 2, 3");
  EXPECT_EQ(rank_list({0, 1, 2}), "ranks 0-2");
  EXPECT_EQ(rank_list({1, 3, 4, 5, 7, 8}), "ranks 1, 3-5, 7, 8");
  std::vector<int> most(63);
  std::iota(most.begin(), most.end(), 0);
  most.push_back(70);
  EXPECT_EQ(rank_list(most), "ranks 0-62, 70");
}

}  // namespace
}  // namespace hep
