// SPDX-License-Identifier: Apache-2.0
// The part of a window that serves the other domains: sections in order, apart, large enough; rings
// that keep to network_bytes.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "protocol/network_layout.h"
#include "protocol/shape.h"

namespace hep {
namespace {

constexpr uint64_t kBegin = 4096;
constexpr uint64_t kMegabyte = 1 << 20;

Shape shape_of(int ranks, int tokens, int top_k, int sets = 1) {
  Shape shape{};
  shape.num_ranks = ranks;
  shape.num_experts = 3 * ranks;
  shape.max_tokens = tokens;
  shape.max_top_k = top_k;
  shape.row_bytes = shape.partial_row_bytes = 2048;
  shape.scale_bytes = 20;
  shape.sets = sets;
  return shape;
}

struct Section {
  std::string name;
  uint64_t begin, bytes;
};

struct Case {
  Shape shape;
  int domain_size;
  uint64_t network_bytes;
};

const std::vector<Case> kCases = {
    {shape_of(4, 4096, 8), 2, 64 * kMegabyte}, {shape_of(8, 64, 3), 1, kMegabyte},
    {shape_of(64, 128, 32), 8, kMegabyte},     {shape_of(4, 128, 8, 2), 2, 64 * kMegabyte},
    {shape_of(6, 1, 1), 3, 4 * kMegabyte},
};

TEST(NetworkLayout, OneDomainTakesNothing) {
  const NetworkLayout network = NetworkLayout::make(shape_of(8, 64, 4), 8, kBegin, kMegabyte);
  EXPECT_TRUE(network.empty());
  EXPECT_EQ(network.end, kBegin);
  const auto routing = NetworkRoutingLayout::make(shape_of(8, 64, 4), network, kBegin);
  EXPECT_EQ(routing.end, kBegin);
}

TEST(NetworkLayout, SectionsAreInOrderAlignedAndApart) {
  for (const Case& c : kCases) {
    const NetworkLayout n = NetworkLayout::make(c.shape, c.domain_size, kBegin, c.network_bytes);
    const uint64_t domains = c.shape.num_ranks / c.domain_size, others = domains - 1;
    const uint64_t tokens = c.shape.max_tokens, top_k = c.shape.max_top_k;
    const uint64_t relayed = std::min<uint64_t>(top_k, c.domain_size);
    const uint64_t weights = (top_k * 4 + 15) / 16 * 16;
    const uint64_t block =
        64 + c.domain_size * (16 + 3 * 4) + tokens + tokens * relayed * 16 + tokens * top_k * 8;
    const uint64_t row_chunk = 64 + n.row_ring.rows * (2048 + 32 + weights);
    const uint64_t part_chunk = n.part_ring.rows * (2048 + weights);
    const uint64_t relay_chunk = n.part_ring.rows * (relayed * 2048 + weights);
    const uint64_t parts = c.shape.sets * tokens * std::min(top_k, others) * (2048 + weights);
    const std::vector<Section> sections = {
        {"inboxes", n.inboxes, domains * 128},
        {"taken", n.taken, domains * c.domain_size * 8},
        {"relayed_by", n.relayed_by, domains * c.domain_size * 8},
        {"relayed", n.relayed, domains * 8},
        {"calls_out", n.calls_out, 2 * others * 64},
        {"calls_in", n.calls_in, 2 * others * 64},
        {"records_out", n.records_out, 2 * others * block},
        {"records_in", n.records_in, 2 * others * block},
        {"rows_out", n.rows_out, others * n.row_ring.slots * row_chunk},
        {"rows_in", n.rows_in, others * n.row_ring.slots * row_chunk},
        {"parts_out", n.parts_out, others * n.part_ring.slots * part_chunk},
        {"parts", n.parts, parts},
        {"relay", n.relay, others * n.part_ring.slots * relay_chunk}};
    uint64_t end = kBegin;
    for (const Section& section : sections) {
      EXPECT_EQ(section.begin % 256, 0u) << section.name;
      EXPECT_GE(section.begin, end) << section.name << " overlaps the section before it";
      end = section.begin + section.bytes;
    }
    EXPECT_GE(n.end, end);
  }
}

TEST(NetworkLayout, LastElementsEndBeforeTheNextSection) {
  for (const Case& c : kCases) {
    const NetworkLayout n = NetworkLayout::make(c.shape, c.domain_size, kBegin, c.network_bytes);
    const int last = n.num_others() - 1, domains = n.num_others() + 1;
    const int last_row_slot = n.row_ring.slots - 1, last_part_slot = n.part_ring.slots - 1;
    EXPECT_LE(n.inbox_at(domains - 1) + 128, n.taken);
    EXPECT_LE(n.taken_at(domains - 1, c.domain_size - 1) + 8, n.relayed_by);
    EXPECT_LE(n.relayed_by_at(domains - 1, c.domain_size - 1) + 8, n.relayed);
    EXPECT_LE(n.relayed_at(domains - 1) + 8, n.calls_out);
    EXPECT_LE(n.call_out_at(1, last) + 64, n.calls_in);
    EXPECT_LE(n.call_in_at(1, last) + 64, n.records_out);
    EXPECT_LE(n.block_out_at(1, last) + n.block_stride, n.records_in);
    EXPECT_LE(n.block_in_at(1, last) + n.block_stride, n.rows_out);
    EXPECT_LE(n.row_chunk_out_at(last, last_row_slot) + n.row_chunk_stride, n.rows_in);
    EXPECT_LE(n.row_chunk_in_at(last, last_row_slot) + n.row_chunk_stride, n.parts_out);
    EXPECT_LE(n.part_chunk_out_at(last, last_part_slot) + n.part_chunk_stride, n.parts);
    EXPECT_LE(n.relay_chunk_at(last, last_part_slot) + n.relay_chunk_stride, n.end);
    EXPECT_EQ(n.row_chunk_in_at(0, n.row_ring.slots), n.row_chunk_in_at(0, 0)) << "a ring";
  }
}

TEST(NetworkLayout, RingsKeepToTheirBytes) {
  for (const Case& c : kCases) {
    const NetworkLayout n = NetworkLayout::make(c.shape, c.domain_size, kBegin, c.network_bytes);
    const uint64_t others = n.num_others();
    EXPECT_LE(others * n.row_ring.slots * n.row_chunk_stride, c.network_bytes);
    EXPECT_LE(others * n.part_ring.slots * n.part_chunk_stride, c.network_bytes);
    EXPECT_LE(others * n.part_ring.slots * n.relay_chunk_stride, c.network_bytes);
  }
}

TEST(NetworkLayout, AmpleRingsHaveEightChunksOf32Rows) {
  const NetworkLayout n = NetworkLayout::make(shape_of(4, 4096, 8), 2, kBegin, 64 * kMegabyte);
  EXPECT_EQ(n.row_ring.rows, 32);
  EXPECT_EQ(n.row_ring.slots, 8);
  EXPECT_EQ(n.part_ring.rows, 32);
  EXPECT_EQ(n.part_ring.slots, 8);
}

TEST(NetworkLayout, TheLeastBytesMakeRingsOfOneRow) {
  const Shape shape = shape_of(4, 4096, 8);
  const uint64_t least = NetworkLayout::least_bytes(shape, 2);
  const NetworkLayout n = NetworkLayout::make(shape, 2, kBegin, least);
  EXPECT_EQ(n.row_ring.rows, 1);
  EXPECT_EQ(n.part_ring.rows, 1);
  EXPECT_EQ(n.part_ring.slots, 1);
  EXPECT_LE(n.part_ring.slots * n.relay_chunk_stride, least);
}

TEST(NetworkLayout, RingsOfLowLatencyHoldTwoBatchesIfTheyFit) {
  for (const int tokens : {1, 3, 128, 256, 1000}) {
    const NetworkLayout n =
        NetworkLayout::make(shape_of(4, tokens, 8, 2), 2, kBegin, 256 * kMegabyte);
    EXPECT_TRUE(n.holds_two_batches) << tokens;
    EXPECT_GE(n.row_ring.slots * n.row_ring.rows, 2 * tokens);
    EXPECT_LE(n.row_ring.slots, kMaxNetworkSlots);
  }
  EXPECT_FALSE(NetworkLayout::make(shape_of(4, 128, 8, 2), 2, kBegin, kMegabyte).holds_two_batches);
  EXPECT_FALSE(
      NetworkLayout::make(shape_of(4, 65536, 8, 2), 2, kBegin, 1024 * kMegabyte).holds_two_batches);
}

TEST(NetworkLayout, OnlyRecordsAndWordsGrowWithTheRanks) {
  const uint64_t pool = uint64_t{4096} * 8 * (2048 + 32);
  for (const int domains : {2, 8, 64}) {
    const NetworkLayout n =
        NetworkLayout::make(shape_of(8 * domains, 4096, 8), 8, kBegin, 64 * kMegabyte);
    EXPECT_LE(n.end - kBegin - 4 * n.num_others() * n.block_stride,
              4 * 64 * kMegabyte + pool + kMegabyte);
  }
}

TEST(NetworkLayout, SectionsOfARoutingAreApart) {
  for (const Case& c : kCases) {
    const NetworkLayout n = NetworkLayout::make(c.shape, c.domain_size, kBegin, c.network_bytes);
    const auto r = NetworkRoutingLayout::make(c.shape, n, kBegin);
    const uint64_t domains = n.num_others() + 1, tokens = c.shape.max_tokens;
    const uint64_t parts = tokens * std::min<uint64_t>(c.shape.max_top_k, domains - 1);
    EXPECT_EQ(r.part_rows, kBegin);
    EXPECT_GE(r.first_parts, r.part_rows + 4 * domains);
    EXPECT_GE(r.part_tokens, r.first_parts + 4 * domains);
    EXPECT_GE(r.part_counts, r.part_tokens + 2 * parts);
    EXPECT_GE(r.token_parts, r.part_counts + tokens);
    EXPECT_GE(r.source_rows, r.token_parts + 4 * parts);
    EXPECT_GE(r.rail_first_parts, r.source_rows + 4 * c.shape.num_ranks);
    EXPECT_GE(r.rail_ranks, r.rail_first_parts + 4 * domains);
    EXPECT_GE(r.end, r.rail_ranks + domains * tokens);
  }
}

}  // namespace
}  // namespace hep
