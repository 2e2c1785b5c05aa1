// SPDX-License-Identifier: Apache-2.0
// The layouts of windows and routings: sections in order, aligned, apart, large enough.

#include <gtest/gtest.h>

#include <algorithm>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "protocol/output_layout.h"
#include "protocol/records.h"
#include "protocol/routing_layout.h"
#include "protocol/shape.h"
#include "protocol/window_layout.h"

namespace hep {
namespace {

Shape shape_of(int ranks, int local_experts, int tokens, int top_k, int row_bytes,
               int64_t heap_bytes, int scale_bytes = 0) {
  Shape shape{};
  shape.num_ranks = ranks;
  shape.num_experts = ranks * local_experts;
  shape.max_tokens = tokens;
  shape.max_top_k = top_k;
  shape.row_bytes = row_bytes;
  shape.partial_row_bytes = row_bytes;
  shape.scale_bytes = scale_bytes;
  shape.heap_bytes = heap_bytes;
  return shape;
}

// Tokens of a chunk of a long batch: 32, or the largest power of two up to 4 R.
uint64_t longest_chunk(uint64_t ranks) {
  uint64_t tokens = 32;
  while (2 * tokens <= 4 * ranks) tokens *= 2;
  return tokens;
}

struct Section {
  std::string name;
  uint64_t begin;
  uint64_t bytes;  // that its elements take
};

// Sections follow each other without overlap, each at its alignment, and end within the total.
void expect_well_laid(const std::vector<Section>& sections, uint64_t total) {
  uint64_t end = 0;
  for (const Section& section : sections) {
    EXPECT_EQ(section.begin % 256, 0u) << section.name;
    EXPECT_GE(section.begin, end) << section.name << " overlaps the section before it";
    EXPECT_LT(section.begin, end + 256) << "a hole before " << section.name;
    end = section.begin + section.bytes;
  }
  EXPECT_GE(total, end);
  EXPECT_LT(total, end + 256);
}

class Layout : public ::testing::TestWithParam<Shape> {
 protected:
  uint64_t ranks() const { return GetParam().num_ranks; }
  uint64_t tokens() const { return GetParam().max_tokens; }
  uint64_t top_k() const { return GetParam().max_top_k; }
  uint64_t local_experts() const { return GetParam().num_experts / GetParam().num_ranks; }
  uint64_t row_bytes() const { return GetParam().row_bytes; }
  uint64_t scale_stride() const { return (GetParam().scale_bytes + 15) / 16 * 16; }
  uint64_t partials() const { return top_k() < ranks() ? top_k() : ranks(); }
  // A few tokens are signalled one by one, up to 32 of them, or half as many until all ranks give
  // 128 signals.
  uint64_t chunks() const {
    uint64_t one_by_one = 32;
    while (one_by_one * ranks() > 128) one_by_one /= 2;
    const uint64_t chunk = longest_chunk(ranks());
    return std::max(std::min(tokens(), one_by_one), (tokens() + chunk - 1) / chunk);
  }
};

TEST_P(Layout, WindowSectionsAreInOrderAlignedAndApart) {
  const WindowLayout window = WindowLayout::make(GetParam());
  const uint64_t source_records = window.record_stride;
  const uint64_t rows = window.published_by(1);
  expect_well_laid(
      {{"signals", 0, ranks() * 192},
       {"block_records", window.block_records, ranks() * 256 * 8},
       {"chunk_ready", window.chunk_ready, chunks() * ranks() * 8},
       {"records", window.records, 2 * ranks() * source_records},
       {"rows", rows, tokens() * row_bytes()},
       {"scales", window.scales_at(1, 0), tokens() * scale_stride()},
       {"weights", window.weights_at(1, 0, static_cast<int>(top_k())), tokens() * top_k() * 4},
       {"partials", window.slots_of(1), tokens() * partials() * row_bytes()},
       {"gradients", window.gradients_at(1, 0, static_cast<int>(top_k())), tokens() * top_k() * 4},
       {"heap", window.heap, static_cast<uint64_t>(GetParam().heap_bytes)}},
      window.total);
}

TEST_P(Layout, LastElementOfEachWindowSectionEndsBeforeTheNext) {
  const WindowLayout window = WindowLayout::make(GetParam());
  const int last_rank = static_cast<int>(ranks()) - 1;
  const int64_t last_token = static_cast<int64_t>(tokens()) - 1;
  EXPECT_LE(window.signals_at(last_rank) + 192, window.chunk_ready);
  EXPECT_LE(window.chunk_ready_at(static_cast<int>(chunks()) - 1, last_rank) + 8, window.records);
  EXPECT_LE(window.header_at(1, last_rank) + window.record_stride, window.published_by(1));
  EXPECT_LE(window.scales_at(1, last_token) + scale_stride(),
            window.weights_at(1, 0, static_cast<int>(top_k())));
  EXPECT_LE(window.weights_at(1, last_token, static_cast<int>(top_k())) + top_k() * 4,
            window.slots);
  EXPECT_LE(window.partial_at(1, last_token, static_cast<int>(partials()) - 1) + row_bytes(),
            window.gradients_at(1, 0, static_cast<int>(top_k())));
  EXPECT_LE(window.gradients_at(1, last_token, static_cast<int>(top_k())) + top_k() * 4,
            window.heap);
}

TEST_P(Layout, RecordsOfASourceHoldHeaderCountsRowsAndSelections) {
  const WindowLayout window = WindowLayout::make(GetParam());
  for (uint64_t epoch : {uint64_t{1}, uint64_t{2}}) {
    for (int source = 0; source < GetParam().num_ranks; ++source) {
      const uint64_t begin = window.header_at(epoch, source);
      const uint64_t end = begin + window.record_stride;
      EXPECT_EQ(begin % 256, 0u);
      EXPECT_EQ(window.counts_at(epoch, source), begin + 16);
      EXPECT_GE(window.rows_at(epoch, source),
                window.counts_at(epoch, source) + local_experts() * 4);
      EXPECT_GE(window.selections_at(epoch, source), window.rows_at(epoch, source) + tokens() * 16);
      EXPECT_GE(end, window.selections_at(epoch, source) + tokens() * top_k() * 8);
      EXPECT_EQ(window.rows_at(epoch, source) % 16, 0u);
      EXPECT_EQ(window.selections_at(epoch, source) % 8, 0u);
    }
  }
}

TEST_P(Layout, ConsecutiveUpdatesUseDisjointRecords) {
  const WindowLayout window = WindowLayout::make(GetParam());
  const int last_rank = static_cast<int>(ranks()) - 1;
  EXPECT_EQ(window.header_at(4, 0), window.records);
  EXPECT_EQ(window.header_at(5, 0), window.header_at(4, last_rank) + window.record_stride);
  EXPECT_EQ(window.header_at(6, last_rank), window.header_at(4, last_rank));
}

TEST_P(Layout, ConsecutiveOperationsUseDisjointSetsIfThereAreTwo) {
  Shape shape = GetParam();
  shape.sets = 2;
  const WindowLayout window = WindowLayout::make(shape);
  const int top_k = static_cast<int>(this->top_k());
  const int64_t last_token = static_cast<int64_t>(tokens()) - 1;
  EXPECT_EQ(window.published_by(4), window.published);
  EXPECT_EQ(window.published_by(5) % 256, 0u);
  EXPECT_EQ(window.published_by(6), window.published_by(4));
  EXPECT_GE(window.published_by(5), window.weights_at(4, last_token, top_k) + this->top_k() * 4);
  EXPECT_GE(window.slots, window.weights_at(5, last_token, top_k) + this->top_k() * 4);
  EXPECT_EQ(window.slots_of(4), window.slots);
  EXPECT_EQ(window.slots_of(5) % 256, 0u);
  EXPECT_EQ(window.slots_of(6), window.slots_of(4));
  EXPECT_GE(window.slots_of(5), window.gradients_at(4, last_token, top_k) + this->top_k() * 4);
  EXPECT_GE(window.heap, window.gradients_at(5, last_token, top_k) + this->top_k() * 4);
}

TEST_P(Layout, RowsThatTheCopyEngineMovesAreAlignedTo16Bytes) {
  const WindowLayout window = WindowLayout::make(GetParam());
  EXPECT_EQ(window.published_by(1) % 16, 0u);
  EXPECT_EQ(row_bytes() % 16, 0u);
  for (int ordinal = 0; ordinal < static_cast<int>(partials()); ++ordinal)
    EXPECT_EQ(window.partial_at(1, 1, ordinal) % 16, 0u);
  EXPECT_EQ(window.scales_at(1, 1) % 16, 0u);
}

TEST_P(Layout, RoutingSectionsAreInOrderAlignedAndApart) {
  const RoutingLayout routing = RoutingLayout::make(GetParam());
  const uint64_t rows = ranks() * tokens();
  EXPECT_EQ(routing.tokens_per_expert, 0u);
  expect_well_laid({{"tokens_per_expert", routing.tokens_per_expert, local_experts() * 4},
                    {"expert_offsets", routing.expert_offsets, (local_experts() + 1) * 4},
                    {"totals", routing.totals, sizeof(RoutingTotals)},
                    {"source_tokens", routing.source_tokens, ranks() * 4},
                    {"source_rows", routing.source_rows, (ranks() + 1) * 4},
                    {"chunk_rows", routing.chunk_rows, ranks() * (chunks() + 1) * 4},
                    {"own_experts", routing.own_experts, tokens() * top_k() * 2},
                    {"partial_counts", routing.partial_counts, tokens()},
                    {"sent_rows", routing.sent_rows, tokens() * partials() * 4},
                    {"rows", routing.rows, rows * 16},
                    {"selections", routing.selections, rows * top_k() * 8},
                    {"weights", routing.weights, rows * top_k() * 4}},
                   routing.total);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Layout,
    ::testing::Values(shape_of(1, 1, 1, 1, 16, 0),               // the smallest
                      shape_of(1, 4096, 65536, 32, 65536, 1),    // one rank, all else largest
                      shape_of(72, 56, 65536, 32, 65536, 1000),  // the largest
                      shape_of(72, 1, 1, 1, 16, 0),              // many ranks, all else smallest
                      shape_of(4, 8, 4096, 8, 14336, 64 << 20),  // a usual one
                      shape_of(8, 32, 33, 3, 48, 17, 5),         // nothing a power of two
                      shape_of(5, 7, 1, 32, 16, 256), shape_of(2, 3, 31, 2, 112, 255, 224)));

// Memory per rank: T rows, T * min(K, R) partial rows, and records of a few bytes per token of each
// rank. Nothing else may grow with the number of tokens or ranks.
TEST(LayoutMemory, GrowsWithRanksOnlyByRecordsAndSignals) {
  const uint64_t tokens = 4096, top_k = 8, row = 14336;
  for (int ranks : {8, 16, 32, 64, 72}) {
    const Shape shape = shape_of(ranks, 8, tokens, top_k, row, 0);
    const WindowLayout window = WindowLayout::make(shape);
    const uint64_t rows_and_partials = tokens * row + 2 * tokens * top_k * 4 + tokens * top_k * row;
    const uint64_t records = 2 * ranks * tokens * (16 + 8 * top_k);  // two updates
    const uint64_t signals = ranks * (192 + 256 * 8 + tokens / longest_chunk(ranks) * 8);
    const uint64_t headers_and_rounding = 2 * ranks * 512 + 10 * 256;
    EXPECT_GE(window.total, rows_and_partials + records + signals);
    EXPECT_LE(window.total, rows_and_partials + records + signals + headers_and_rounding);
  }
}

TEST(LayoutMemory, TakesAbout550MegabytesFor64Ranks) {
  const WindowLayout window = WindowLayout::make(shape_of(64, 4, 4096, 8, 7168 * 2, 0));
  EXPECT_NEAR(static_cast<double>(window.total), 0.55e9, 0.05 * 0.55e9);
}

TEST(LayoutMemory, NeedsNoMorePartialSlotsThanRanksOrSelections) {
  EXPECT_EQ(shape_of(4, 8, 16, 8, 64, 0).max_partials(), 4);
  EXPECT_EQ(shape_of(64, 8, 16, 8, 64, 0).max_partials(), 8);
  EXPECT_EQ(shape_of(8, 8, 16, 8, 64, 0).max_partials(), 8);
}

}  // namespace
TEST(Chunks, NoBatchHasMoreThanTheLayoutHasRoomFor) {
  for (const int ranks : {1, 2, 5, 8, 64, 72}) {
    for (const int max_tokens : {1, 2, 31, 127, 128, 129, 1000, 4096, 4097, 5000}) {
      Shape shape{};
      shape.num_ranks = ranks;
      shape.max_tokens = max_tokens;
      for (int tokens = 1; tokens <= max_tokens; ++tokens) {
        const int chunk = chunk_tokens(tokens, ranks);
        EXPECT_EQ(chunk & (chunk - 1), 0);
        EXPECT_LE((tokens + chunk - 1) / chunk, shape.max_chunks())
            << tokens << " of " << max_tokens << " tokens, " << ranks << " ranks";
      }
    }
  }
}

// A signal takes as long for one row as for many.
TEST(Chunks, OfManyTokensHaveAsManyRowsOfARankWhateverTheNumberOfRanks) {
  for (int ranks = 2; ranks <= 72; ++ranks) {
    const double selected = 1 - std::pow(1 - 1.0 / ranks, 8);  // of a token's top-8, uniformly
    const double rows = chunk_tokens(4096, ranks) * selected;
    EXPECT_GE(rows, 13) << ranks << " ranks";
    EXPECT_LE(rows, 32) << ranks << " ranks";
  }
}

TEST(Chunks, OfFewTokensGiveARankAtMost128Signals) {
  for (int ranks = 2; ranks <= 72; ++ranks) {
    for (const int tokens : {1, 32, 128}) {
      EXPECT_LE(num_chunks(tokens, ranks) * ranks, 128)
          << tokens << " tokens, " << ranks << " ranks";
      EXPECT_LE(num_chunks(tokens, ranks), 32) << tokens << " tokens, " << ranks << " ranks";
    }
  }
}

// Selections that no update makes, such as those of a list that another kernel has overwritten.
TEST(BlockCounts, LiveInWholeLoadsOfEveryCounter) {
  Shape shape{};
  shape.num_ranks = 3;
  shape.num_experts = 12;
  for (int blocks = 1; blocks <= kMaxBlocks; ++blocks) {
    const int stride = block_count_stride(blocks);
    EXPECT_GE(stride, blocks);
    EXPECT_LT(stride, blocks + 4);
    EXPECT_EQ(stride * sizeof(uint32_t) % 16, 0u) << blocks;
    EXPECT_EQ(block_count_bytes(shape, blocks), sizeof(uint32_t) * stride * (12 + 2 * 3));
  }
}

TEST(OutputLayout, RowsOutsideOfTheOutputAreDropped) {
  const int32_t offsets[] = {0, 16, 32};
  const auto row = [&](uint32_t place, uint16_t expert) {
    return row_of_selection(hepLayoutExpertPadded, 8, 2, offsets, {place, expert, 0});
  };
  EXPECT_EQ(row(16, 1), 8);
  EXPECT_EQ(row(23, 1), 15);
  EXPECT_EQ(row(24, 1), kDropped);  // past the capacity
  EXPECT_EQ(row(15, 1), kDropped);  // before the expert's first row
  EXPECT_EQ(row(0, 2), kDropped);   // past the last expert
  EXPECT_EQ(row(0, UINT16_MAX), kDropped);
  EXPECT_EQ(row_of_selection(hepLayoutExpertMajor, 8, 2, offsets, {7, 1, 0}), 7);
  EXPECT_EQ(row_of_selection(hepLayoutExpertMajor, 8, 2, offsets, {8, 1, 0}), kDropped);
}

}  // namespace hep
