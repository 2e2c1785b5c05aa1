// SPDX-License-Identifier: Apache-2.0
// Immediates, descriptors and their ring, channels, and the count of what comes out of order.
#include "network/descriptor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "network/consecutive.h"
#include "network/ring.h"

namespace hep {
namespace {

constexpr WriteKind kKinds[] = {WriteKind::kRecords, WriteKind::kRows,   WriteKind::kParts,
                                WriteKind::kCall,    WriteKind::kCredit, WriteKind::kHello};

bool operator==(const WriteDescriptor& a, const WriteDescriptor& b) {
  return a.kind == b.kind && a.domain == b.domain && a.slot == b.slot && a.target == b.target &&
         a.bytes == b.bytes;
}

constexpr WriteDescriptor kLargest{WriteKind::kHello, 1023, 0xffff, 0xffffff, 0xffffff0};

TEST(Immediate, KeepsItsFieldsAndOneNumberOf256) {
  for (const WriteKind kind : kKinds)
    for (const uint32_t lane : {0u, 7u})
      for (const uint32_t domain : {0u, 63u, 1023u})
        for (const uint32_t number : {0u, 255u, 256u, 1000u}) {
          const uint32_t bits = Immediate{kind, lane, domain, number}.pack();
          const Immediate read = Immediate::unpack(bits);
          EXPECT_EQ(read.kind, kind);
          EXPECT_EQ(read.lane, lane);
          EXPECT_EQ(read.domain, domain);
          EXPECT_EQ(read.number, number % 256);
          EXPECT_EQ(bits >> 24, 0u);
        }
}

TEST(Descriptor, KeepsItsFieldsAtTheirLargest) {
  for (const uint64_t position : {uint64_t{0}, uint64_t{65535}, uint64_t{1} << 32, ~uint64_t{0}})
    for (const WriteDescriptor& write :
         {WriteDescriptor{}, kLargest, WriteDescriptor{WriteKind::kParts, 5, 3, 70000, 14352}}) {
      const PackedDescriptor packed = pack(write, position);
      EXPECT_TRUE(is_at(packed, position));
      EXPECT_TRUE(unpack(packed) == write);
    }
}

// Two words become visible one after the other; before that they are those of the lap before.
TEST(Descriptor, OfTwoLapsIsNone) {
  for (const uint64_t position :
       {uint64_t{kMaxRingSlots}, uint64_t{1} << 16, (uint64_t{1} << 32) + 5}) {
    const PackedDescriptor before = pack(kLargest, position - kMaxRingSlots);
    const PackedDescriptor now = pack(kLargest, position);
    EXPECT_FALSE(is_at(before, position));
    EXPECT_FALSE(is_at({{now.words[0], before.words[1]}}, position));
    EXPECT_FALSE(is_at({{before.words[0], now.words[1]}}, position));
    EXPECT_TRUE(is_at(now, position));
  }
}

TEST(Descriptor, ZeroedMemoryIsNoneInTheFirstLap) {
  for (uint64_t position = 0; position < kMaxRingSlots; ++position)
    ASSERT_FALSE(is_at(PackedDescriptor{}, position)) << position;
}

TEST(Ring, GivesBackWhatWasPushedInItsOrderAndNoMore) {
  constexpr uint32_t kSlots = ring_slots(5);
  static_assert(kSlots == 8);
  std::vector<PackedDescriptor> memory(kSlots);
  RingWriter writer(memory.data(), kSlots);
  RingReader reader(memory.data(), kSlots);
  WriteDescriptor write{};
  for (uint32_t i = 0; i < 100000; ++i) {
    ASSERT_FALSE(reader.take(&write)) << i;
    for (uint32_t k = 0; k < kSlots; ++k) writer.push({WriteKind::kRows, k, i & 0xffff, i, 16 * k});
    for (uint32_t k = 0; k < kSlots; ++k) {
      ASSERT_TRUE(reader.take(&write)) << i;
      ASSERT_TRUE((write == WriteDescriptor{WriteKind::kRows, k, i & 0xffff, i, 16 * k})) << i;
    }
  }
}

// Three domains: the blocks of the two others stand one after the other.
TEST(Channel, FindsTheBlockOfEachOtherDomainOnBothSides) {
  const Channel rows{1000, 400, 100, 5000, 400, 100, 4, 4, 96};
  const WriteDescriptor to_0{WriteKind::kRows, 0, 3, 2, 96}, to_2{WriteKind::kRows, 2, 3, 2, 96};
  EXPECT_EQ(rows.source_of(to_0, 1), 1000u + 0 * 400 + 3 * 100);
  EXPECT_EQ(rows.source_of(to_2, 1), 1000u + 1 * 400 + 3 * 100);
  EXPECT_EQ(rows.destination_of(to_0, 1), 5000u + 0 * 400 + 2 * 100);  // 1 is the first there
  EXPECT_EQ(rows.destination_of(to_2, 1), 5000u + 1 * 400 + 2 * 100);  // and the second there
}

TEST(Channel, HoldsSlotsTargetsAndBytesOfItsOwn) {
  const Channel rows{0, 0, 96, 0, 0, 96, 4, 8, 96};
  EXPECT_TRUE(rows.holds({WriteKind::kRows, 0, 3, 7, 96}));
  EXPECT_FALSE(rows.holds({WriteKind::kRows, 0, 4, 7, 96}));
  EXPECT_FALSE(rows.holds({WriteKind::kRows, 0, 3, 8, 96}));
  EXPECT_FALSE(rows.holds({WriteKind::kRows, 0, 3, 7, 112}));
  EXPECT_TRUE(Channel{}.holds({WriteKind::kCredit, 0, 0, 0, 0}));
}

TEST(ConsecutiveCount, CountsWhatHasNoGapBelow) {
  ConsecutiveCount count;
  EXPECT_TRUE(count.add(2));
  EXPECT_TRUE(count.add(1));
  EXPECT_EQ(count.count(), 0u);
  EXPECT_TRUE(count.add(0));
  EXPECT_EQ(count.count(), 3u);
}

TEST(ConsecutiveCount, GoesOnPast256InAnyOrder) {
  std::mt19937 random(1);
  ConsecutiveCount count;
  std::vector<uint32_t> ahead;
  uint64_t next = 0;
  while (count.count() < 10000) {
    while (next < count.count() + kMaxInFlight) ahead.push_back(static_cast<uint32_t>(next++));
    std::swap(ahead[random() % ahead.size()], ahead.back());
    ASSERT_TRUE(count.add(ahead.back() & 0xff));
    ahead.pop_back();
    const auto lowest = std::min_element(ahead.begin(), ahead.end());
    ASSERT_EQ(count.count(), lowest == ahead.end() ? next : *lowest);
  }
}

TEST(ConsecutiveCount, RefusesWhatHasComeOrIsTooFarAhead) {
  ConsecutiveCount count;
  EXPECT_TRUE(count.add(0));
  EXPECT_FALSE(count.add(0));
  EXPECT_TRUE(count.add(kMaxInFlight));
  EXPECT_FALSE(count.add(kMaxInFlight));
  EXPECT_FALSE(count.add(kMaxInFlight + 1));
  EXPECT_EQ(count.count(), 1u);
}

}  // namespace
}  // namespace hep
