// SPDX-License-Identifier: Apache-2.0
// What a warp does together, against loops over its lanes.
#include "backend/cuda/kernels/common/warp.cuh"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "backend/cuda/kernels/combine/rows.cuh"
#include "device.h"
#include "kernels.cuh"
#include "protocol/records.h"

namespace {

using device_test::Array;
using hep::EntryItems;
using hep::kWarpSize;
using hep::SelectionWarpLanes;
using hep::warp_lane;

// ------------------------------------------------------------------------------- sums and masks

struct LaneFacts {
  uint32_t value, sum, inclusive_sum;
  uint32_t below, above;
};

__global__ void lane_facts_kernel(LaneFacts* facts) {
  LaneFacts& own = facts[device_test::grid_thread()];
  own.sum = hep::warp_sum(own.value);
  own.inclusive_sum = hep::warp_inclusive_sum(own.value);
  own.below = hep::warp_lanes_below();
  own.above = hep::warp_lanes_above();
}

TEST(Warp, SumsAndMasksAreThoseOfALoopOverTheLanes) {
  constexpr int kBlocks = 50, kThreads = 128;
  std::mt19937 random(3);
  std::vector<LaneFacts> facts(kBlocks * kThreads);
  for (LaneFacts& own : facts) own.value = random();
  const Array<LaneFacts> device_facts(facts);
  lane_facts_kernel<<<kBlocks, kThreads>>>(device_facts.data());
  device_test::expect_done();
  facts = device_facts.values();
  for (size_t warp = 0; warp < facts.size(); warp += kWarpSize) {
    uint32_t sum = 0;
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const LaneFacts& own = facts[warp + lane];
      sum += own.value;
      EXPECT_EQ(own.inclusive_sum, sum);
      uint32_t below = 0, above = 0;
      for (int other = 0; other < kWarpSize; ++other)
        (other < lane ? below : above) |= other != lane ? 1u << other : 0;
      EXPECT_EQ(own.below, below);
      EXPECT_EQ(own.above, above);
    }
    for (int lane = 0; lane < kWarpSize; ++lane) EXPECT_EQ(facts[warp + lane].sum, sum);
  }
}

// masks: [begin][end]
__global__ void lanes_between_kernel(uint32_t* masks) {
  const int begin = blockIdx.x, end = threadIdx.x + 1;
  if (begin < end) masks[begin * kWarpSize + threadIdx.x] = hep::lanes_between(begin, end);
}

TEST(Warp, LanesBetweenAreThoseOfALoop) {
  const Array<uint32_t> masks(kWarpSize * kWarpSize);
  lanes_between_kernel<<<kWarpSize, kWarpSize>>>(masks.data());
  device_test::expect_done();
  const std::vector<uint32_t> actual = masks.values();
  for (int begin = 0; begin < kWarpSize; ++begin) {
    uint32_t expected = 0;
    for (int last = begin; last < kWarpSize; ++last) {
      expected |= 1u << last;
      EXPECT_EQ(actual[begin * kWarpSize + last], expected) << begin << " to " << last;
    }
  }
}

// ------------------------------------------------------------------------------------- selections

struct LaneSelection {
  int groups, group, index;
  uint32_t of_group;
};

// lanes: [top_k - 1][lane]
__global__ void selection_lanes_kernel(LaneSelection* lanes) {
  const SelectionWarpLanes own(blockIdx.x + 1);
  lanes[device_test::grid_thread()] = {own.groups, own.group, own.index, own.of_group};
}

TEST(SelectionWarpLanes, ShareOutAWarpForEveryTopK) {
  const Array<LaneSelection> lanes(kWarpSize * kWarpSize);
  selection_lanes_kernel<<<kWarpSize, kWarpSize>>>(lanes.data());
  device_test::expect_done();
  const std::vector<LaneSelection> all = lanes.values();
  for (int top_k = 1; top_k <= kWarpSize; ++top_k) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      SCOPED_TRACE("top_k " + std::to_string(top_k) + ", lane " + std::to_string(lane));
      const LaneSelection& actual = all[(top_k - 1) * kWarpSize + lane];
      uint32_t of_group = 0;
      for (int other = 0; other < kWarpSize; ++other)
        if (other / top_k == lane / top_k) of_group |= 1u << other;
      EXPECT_EQ(actual.groups, kWarpSize / top_k);
      EXPECT_EQ(actual.group, lane / top_k);
      EXPECT_EQ(actual.index, lane % top_k);
      EXPECT_EQ(actual.of_group, of_group);
    }
  }
}

// ---------------------------------------------------------------------------------------- entries

// Entries of a warp: how many items each lane's has, and how many lanes belong together.
struct Entries {
  int num_lanes, group;
  uint32_t counts[kWarpSize];
  uint32_t kept;  // of the items of a batch, by lane: those that were not dropped
};

// What a lane has in a batch.
struct LaneItem {
  int first, last;  // lanes whose entries are in the batch
  int entry;
  uint32_t index, siblings;
  uint32_t contributing;  // lanes of the batch
  uint32_t token;         // of the record of the entry
};

// A block is a warp. items: [block][batch][lane]
__global__ void entry_items_kernel(const Entries* all, LaneItem* items) {
  const Entries& own = all[blockIdx.x];
  const EntryItems entries(warp_lane() < own.num_lanes ? own.counts[warp_lane()] : 0);
  const uint4 record = make_uint4(1000 + warp_lane(), 0, 0, 0);  // a Row
  LaneItem* batch = items + blockIdx.x * kWarpSize * kWarpSize;
  for (int first = 0, last; first < own.num_lanes; first = last, batch += kWarpSize) {
    last = entries.end_of_batch(first, own.group, own.num_lanes);
    const EntryItems::Batch found = entries.batch(first, last);
    const hep::Row row = hep::combine::row_of_warp_lane(record, found.entry);
    const char* address = (own.kept >> warp_lane() & 1) != 0 ? "kept" : nullptr;
    batch[warp_lane()] = {first,          last,
                          found.entry,    found.index,
                          found.siblings, hep::combine::contributing_warp_lanes(found, address),
                          row.token};
  }
}

// Batches take as many whole groups as have no more items than there are lanes.
int expected_end(const Entries& entries, int first) {
  uint32_t items = 0;
  int end = first;
  for (int group = first; group < entries.num_lanes; group += entries.group) {
    for (int lane = group; lane < group + entries.group; ++lane) items += entries.counts[lane];
    if (items > kWarpSize) break;
    end = group + entries.group;
  }
  return end;
}

// The items of a batch one after the other. The kept ones contribute, and the first of an entry
// that has none.
std::vector<LaneItem> expected_batch(const Entries& entries, int first, int last) {
  std::vector<LaneItem> items;
  uint32_t contributing = 0;
  for (int entry = first; entry < last; ++entry) {
    const auto begin = static_cast<uint32_t>(items.size());
    uint32_t siblings = 0;
    for (uint32_t i = 0; i < entries.counts[entry]; ++i) siblings |= 1u << (begin + i);
    if (siblings != 0)
      contributing |= (entries.kept & siblings) != 0 ? entries.kept & siblings : 1u << begin;
    for (uint32_t i = 0; i < entries.counts[entry]; ++i)
      items.push_back({first, last, entry, i, siblings, 0, 1000u + entry});
  }
  for (LaneItem& item : items) item.contributing = contributing;
  return items;
}

void expect_batches(const Entries& entries, const LaneItem* actual) {
  for (int first = 0, last; first < entries.num_lanes; first = last, actual += kWarpSize) {
    last = expected_end(entries, first);
    const std::vector<LaneItem> expected = expected_batch(entries, first, last);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      SCOPED_TRACE("lane " + std::to_string(lane) + " of the batch from " + std::to_string(first));
      ASSERT_EQ(actual[lane].first, first);
      ASSERT_EQ(actual[lane].last, last);
      if (lane >= static_cast<int>(expected.size())) {
        ASSERT_EQ(actual[lane].siblings, 0u) << "a lane without an item";
        continue;
      }
      ASSERT_EQ(actual[lane].entry, expected[lane].entry);
      ASSERT_EQ(actual[lane].index, expected[lane].index);
      ASSERT_EQ(actual[lane].siblings, expected[lane].siblings);
      ASSERT_EQ(actual[lane].contributing, expected[lane].contributing);
      ASSERT_EQ(actual[lane].token, expected[lane].token);
    }
  }
}

// One group always fits.
Entries random_entries(std::mt19937& random, int group) {
  const auto below = [&](uint32_t limit) { return static_cast<int>(random() % limit); };
  Entries entries{};
  entries.group = group;
  entries.num_lanes = (1 + below(kWarpSize / group)) * group;
  entries.kept = random() | random();
  if (below(3) == 0) entries.kept &= random() & random() & random();
  for (int first = 0; first < entries.num_lanes; first += group) {
    int left = below(4) == 0 ? kWarpSize : below(kWarpSize + 1);
    for (int lane = first; lane < first + group; ++lane) {
      entries.counts[lane] = below(4) == 0 ? 0 : below(std::min(left, 9) + 1);
      if (lane == first + group - 1 && below(8) == 0) entries.counts[lane] = left;
      left -= entries.counts[lane];
    }
  }
  return entries;
}

TEST(EntryItems, HandRoundEveryItemOfEveryEntryOnce) {
  std::mt19937 random(11);
  std::vector<Entries> entries;
  for (int group = 1; group <= kWarpSize; ++group)
    for (int i = 0; i < 40; ++i) entries.push_back(random_entries(random, group));
  const Array<Entries> inputs(entries);
  const Array<LaneItem> items(entries.size() * kWarpSize * kWarpSize);
  entry_items_kernel<<<entries.size(), kWarpSize>>>(inputs.data(), items.data());
  device_test::expect_done();
  const std::vector<LaneItem> actual = items.values();
  for (size_t i = 0; i < entries.size(); ++i) {
    SCOPED_TRACE("entries " + std::to_string(i));
    expect_batches(entries[i], &actual[i * kWarpSize * kWarpSize]);
  }
}

// ------------------------------------------------------------------------------------------ rows

// A record goes round whole but for its last word, which is reserved and the source.
__global__ void row_of_lane_kernel(const uint4* records, hep::Row* rows) {
  const uint4 own = records[warp_lane()];
  for (int lane = 0; lane < kWarpSize; ++lane)
    rows[lane * kWarpSize + warp_lane()] = hep::combine::row_of_warp_lane(own, lane);
}

TEST(RowOfLane, GivesEveryLaneTheRecordOfAnother) {
  std::mt19937 random(5);
  std::vector<hep::Row> records(kWarpSize);
  for (hep::Row& record : records)
    record = {static_cast<uint32_t>(random()),
              static_cast<uint32_t>(random()),
              static_cast<uint16_t>(random()),
              static_cast<uint16_t>(random()),
              7,
              0};
  const Array<hep::Row> inputs(records);
  const Array<hep::Row> rows(kWarpSize * kWarpSize);
  row_of_lane_kernel<<<1, kWarpSize>>>(reinterpret_cast<const uint4*>(inputs.data()), rows.data());
  device_test::expect_done();
  const std::vector<hep::Row> actual = rows.values();
  for (int i = 0; i < kWarpSize * kWarpSize; ++i) {
    const hep::Row& expected = records[i / kWarpSize];
    EXPECT_EQ(actual[i].token, expected.token);
    EXPECT_EQ(actual[i].first, expected.first);
    EXPECT_EQ(actual[i].count, expected.count);
    EXPECT_EQ(actual[i].ordinal, expected.ordinal);
  }
}

// ------------------------------------------------------------------------------------------ loops

struct Use {
  uint32_t index, loaded;
};
constexpr uint32_t kMostUses = 64;

// A thread for each count below kMostUses. uses: [count][kMostUses]
template <int kAtOnce>
__global__ void for_each_loaded_kernel(uint32_t first, uint32_t stride, Use* uses) {
  Use* next = uses + threadIdx.x * kMostUses;
  const auto load = [](uint32_t i) { return 3 * i + 1; };
  hep::for_each_loaded<kAtOnce>(first, stride, threadIdx.x, load, [&](uint32_t i, uint32_t loaded) {
    *next++ = {i, loaded};
  });
}

template <int kAtOnce>
void expect_each_used() {
  for (const uint32_t stride : {1, 2, 7, 32}) {
    for (const uint32_t first : {0, 1, 5, 40}) {
      const Array<Use> uses(std::vector<Use>(kMostUses * kMostUses, Use{UINT32_MAX, 0}));
      for_each_loaded_kernel<kAtOnce><<<1, kMostUses>>>(first, stride, uses.data());
      device_test::expect_done();
      const std::vector<Use> actual = uses.values();
      for (uint32_t count = 0; count < kMostUses; ++count) {
        const Use* next = &actual[count * kMostUses];
        for (uint32_t i = first; i < count; i += stride, ++next) {
          ASSERT_EQ(next->index, i) << kAtOnce << " at once, below " << count;
          ASSERT_EQ(next->loaded, 3 * i + 1);
        }
        ASSERT_EQ(next->index, UINT32_MAX) << kAtOnce << " at once, below " << count;
      }
    }
  }
}

TEST(ForEachLoaded, UsesEachInOrderOnce) {
  expect_each_used<1>();
  expect_each_used<2>();
  expect_each_used<4>();
  expect_each_used<8>();
}

}  // namespace
