// SPDX-License-Identifier: Apache-2.0
// Who is where: domains of a given size, and domains that hosts make.

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "protocol/topology.h"

namespace hep {
namespace {

using Hosts = std::vector<uint64_t>;

TEST(Topology, RanksStandInDomainsOneAfterTheOther) {
  constexpr Topology topology{12, 4};
  EXPECT_EQ(topology.num_domains(), 3);
  EXPECT_EQ(topology.domain_of(3), 0);
  EXPECT_EQ(topology.domain_of(4), 1);
  EXPECT_EQ(topology.number_of(7), 3);
  EXPECT_EQ(topology.rank_of(2, 1), 9);
  EXPECT_TRUE(topology.share_domain(4, 7));
  EXPECT_FALSE(topology.share_domain(3, 4));
  for (int rank = 0; rank < 12; ++rank)
    EXPECT_EQ(topology.rank_of(topology.domain_of(rank), topology.number_of(rank)), rank);
}

TEST(Topology, OtherDomainsAreNumberedWithoutTheOwn) {
  EXPECT_EQ(index_of_domain(0, 2), 0);
  EXPECT_EQ(index_of_domain(1, 2), 1);
  EXPECT_EQ(index_of_domain(3, 2), 2);
}

void expect_detected(const Hosts& hosts, int expected) {
  int size = 0;
  const Status status = detect_domain_size(hosts, &size);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(size, expected);
}

void expect_refused(const Hosts& hosts, const std::vector<const char*>& words) {
  int size = -1;
  const Status status = detect_domain_size(hosts, &size);
  EXPECT_EQ(status.result(), hepErrorInvalidArgument);
  for (const char* word : words)
    EXPECT_NE(status.message().find(word), std::string::npos)
        << status.message() << " lacks " << word;
}

TEST(Topology, RanksOfAHostAreADomain) {
  expect_detected({7}, 1);
  expect_detected({7, 7, 7, 7}, 4);
  expect_detected({7, 7, 9, 9}, 2);
  expect_detected({7, 9, 8}, 1);
}

TEST(Topology, HostsWithUnequalNumbersOfRanksAreRefused) {
  expect_refused({7, 7, 7, 9}, {"rank 0", "3 ranks", "rank 3 has 1"});
  expect_refused({7, 9, 9}, {"1 ranks", "ranks 1 to 2"});
  expect_refused({7, 7, 9, 9, 8}, {"rank 4"});
}

TEST(Topology, InterleavedRanksAreRefused) {
  expect_refused({7, 9, 7, 9}, {"rank 2", "rank 0", "consecutive"});
  expect_refused({7, 7, 9, 9, 7, 7}, {"rank 4", "rank 0"});
}

TEST(Topology, ASizeThatDoesNotDivideTheRanksIsRefused) {
  EXPECT_TRUE(check_domain_size("domain_size", 2, 4).ok());
  EXPECT_TRUE(check_domain_size("domain_size", 1, 64).ok());
  const Status uneven = check_domain_size("domain_size", 3, 4);
  EXPECT_EQ(uneven.result(), hepErrorInvalidArgument);
  EXPECT_EQ(uneven.message(), "domain_size is 3, but must divide num_ranks, 4");
  EXPECT_EQ(check_domain_size("domain_size", 5, 4).message(),
            "domain_size is 5, but must be at most num_ranks, 4");
  EXPECT_NE(check_domain_size("domain_size", 1, 65).message().find("65 domains"),
            std::string::npos);
}

}  // namespace
}  // namespace hep
