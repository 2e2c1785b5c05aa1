// SPDX-License-Identifier: Apache-2.0
// The host backend by itself: rank threads over windows in plain memory, with small examples that
// were worked out by hand.
#include "host_ranks.h"

#include "protocol/at.h"
#include "protocol/records.h"
#include "protocol/routing_layout.h"

namespace hep {
namespace {

class HostBackendExample : public ::testing::Test {
 protected:
  HostBackendExample() { ranks_.update(kIndices, kTopK); }

  Ranks ranks_{Options{}};
  const std::vector<Matrix> x_ = {rows_of({1, 2, 3}), rows_of({4, 5})};
  const std::vector<Floats> weights_ = {{0.5f, 0.25f, 2.0f, 64.0f, 4.0f, 8.0f},
                                        {0.125f, 16.0f, 32.0f, 1.0f}};
};

TEST_F(HostBackendExample, UpdateCountsAndPlacesInCanonicalOrder) {
  const auto ints = [](const int32_t* data, int count) { return Ints(data, data + count); };
  EXPECT_EQ(ints(ranks_.section<int32_t>(0, &RoutingLayout::tokens_per_expert), 2), Ints({2, 2}));
  EXPECT_EQ(ints(ranks_.section<int32_t>(1, &RoutingLayout::tokens_per_expert), 2), Ints({3, 2}));
  EXPECT_EQ(ints(ranks_.section<int32_t>(0, &RoutingLayout::expert_offsets), 3), Ints({0, 2, 4}));
  EXPECT_EQ(ints(ranks_.section<int32_t>(1, &RoutingLayout::expert_offsets), 3), Ints({0, 3, 5}));
  EXPECT_EQ(ints(ranks_.section<int32_t>(0, &RoutingLayout::source_tokens), 2), Ints({3, 2}));
  EXPECT_EQ(ints(ranks_.section<int32_t>(0, &RoutingLayout::source_rows), 3), Ints({0, 2, 3}));
  EXPECT_EQ(ints(ranks_.section<int32_t>(1, &RoutingLayout::source_rows), 3), Ints({0, 2, 4}));

  const uint8_t* partials = ranks_.section<uint8_t>(0, &RoutingLayout::partial_counts);
  EXPECT_EQ(std::vector<int>(partials, partials + 3), std::vector<int>({2, 1, 1}));

  struct ExpectedRow {
    uint32_t token, first;
    int count, ordinal, source;
  };
  const std::vector<ExpectedRow> expected_rows = {
      {0, 0, 1, 1, 0}, {1, 1, 1, 0, 0}, {0, 2, 2, 0, 1}, {1, 4, 1, 1, 1}};
  const Row* rows = ranks_.section<Row>(1, &RoutingLayout::rows);
  for (size_t i = 0; i < expected_rows.size(); ++i) {
    EXPECT_EQ(rows[i].token, expected_rows[i].token) << i;
    EXPECT_EQ(rows[i].first, expected_rows[i].first) << i;
    EXPECT_EQ(rows[i].count, expected_rows[i].count) << i;
    EXPECT_EQ(rows[i].ordinal, expected_rows[i].ordinal) << i;
    EXPECT_EQ(rows[i].source, expected_rows[i].source) << i;
  }

  struct ExpectedSelection {
    uint32_t place;
    int expert, k;
  };
  const std::vector<ExpectedSelection> expected_selections = {
      {0, 0, 1}, {3, 1, 0}, {1, 0, 0}, {2, 0, 1}, {4, 1, 1}};
  const Selection* selections = ranks_.section<Selection>(1, &RoutingLayout::selections);
  for (size_t i = 0; i < expected_selections.size(); ++i) {
    EXPECT_EQ(selections[i].place, expected_selections[i].place) << i;
    EXPECT_EQ(selections[i].expert, expected_selections[i].expert) << i;
    EXPECT_EQ(selections[i].k, expected_selections[i].k) << i;
  }
}

TEST_F(HostBackendExample, QueryGivesTheCounts) {
  Ints tokens_per_expert(2);
  hepRoutingCounts_t counts{};
  counts.tokens_per_expert = tokens_per_expert.data();
  Ranks::expect_ok(ranks_.routing(1).query(&counts, nullptr));
  EXPECT_EQ(counts.num_flat_rows, 4);
  EXPECT_EQ(counts.num_expert_rows, 5);
  EXPECT_EQ(counts.num_padded_rows, 5);
  EXPECT_EQ(tokens_per_expert, Ints({3, 2}));
}

TEST_F(HostBackendExample, FlatDispatchDeliversRowsAndExtras) {
  std::vector<Matrix> rows = {canary_rows(3), canary_rows(4)};
  std::vector<Floats> row_weights = {Floats(6, -1.0f), Floats(8, -1.0f)};
  std::vector<Ints> experts = {Ints(6, kIntCanary), Ints(8, kIntCanary)};
  std::vector<Ints> sources = {Ints(3, kIntCanary), Ints(4, kIntCanary)};
  std::vector<Ints> tokens = {Ints(3, kIntCanary), Ints(4, kIntCanary)};
  std::vector<Ints> gather = {Ints(4, kIntCanary), Ints(6, kIntCanary)};
  std::vector<hepDispatchArgs_t> args;
  for (int r = 0; r < 2; ++r) {
    args.push_back(dispatch_args(hepLayoutFlat, x_[r], rows[r]));
    args[r].weights = weights_[r].data();
    args[r].row_weights = row_weights[r].data();
    args[r].row_experts = experts[r].data();
    args[r].row_sources = sources[r].data();
    args[r].row_tokens = tokens[r].data();
    args[r].gather = gather[r].data();
    args[r].gather_capacity = static_cast<int64_t>(gather[r].size());
  }
  ranks_.dispatch(args);

  EXPECT_EQ(rows[0], rows_of({1, 3, 5}));
  EXPECT_EQ(sources[0], Ints({0, 0, 1}));
  EXPECT_EQ(tokens[0], Ints({0, 2, 1}));
  EXPECT_EQ(experts[0], Ints({0, -1, 1, 0, 1, -1}));
  EXPECT_EQ(row_weights[0], Floats({0.5f, 0, 4, 8, 32, 0}));
  EXPECT_EQ(gather[0], Ints({0, 1, 1, 2}));

  EXPECT_EQ(rows[1], rows_of({1, 2, 4, 5}));
  EXPECT_EQ(sources[1], Ints({0, 0, 1, 1}));
  EXPECT_EQ(tokens[1], Ints({0, 1, 0, 1}));
  EXPECT_EQ(experts[1], Ints({-1, 0, 1, -1, 0, 0, -1, 1}));
  EXPECT_EQ(row_weights[1], Floats({0, 0.25f, 2, 0, 0.125f, 16, 0, 1}));
  EXPECT_EQ(gather[1], Ints({0, 2, 2, 1, 3, kIntCanary}));

  EXPECT_EQ(ranks_.counters(1).needed, 4);
  EXPECT_EQ(ranks_.counters(1).written, 4);
  EXPECT_EQ(ranks_.counters(1).overflow, 0);
}

TEST_F(HostBackendExample, ExpertMajorDispatchDeliversARowForEachSelection) {
  std::vector<Matrix> rows = {canary_rows(5), canary_rows(5)};
  std::vector<Floats> row_weights = {Floats(5, -1.0f), Floats(5, -1.0f)};
  std::vector<hepDispatchArgs_t> args;
  for (int r = 0; r < 2; ++r) {
    args.push_back(dispatch_args(hepLayoutExpertMajor, x_[r], rows[r]));
    args[r].weights = weights_[r].data();
    args[r].row_weights = row_weights[r].data();
  }
  ranks_.dispatch(args);
  EXPECT_EQ(rows[0], rows_of({1, 3, 3, 5}) + canary_rows(1));
  EXPECT_EQ(row_weights[0], Floats({0.5f, 8, 4, 32, -1}));
  EXPECT_EQ(rows[1], rows_of({1, 4, 4, 2, 5}));
  EXPECT_EQ(row_weights[1], Floats({0.25f, 0.125f, 16, 2, 1}));
}

TEST_F(HostBackendExample, CapacityDropsRowsFromTheEndAndNothingIsWrittenPastIt) {
  // The arrays hold more than the capacity tells: what lies past it must stay.
  std::vector<Matrix> rows = {canary_rows(3), canary_rows(4)};
  std::vector<Ints> tokens = {Ints(3, kIntCanary), Ints(4, kIntCanary)};
  std::vector<Ints> gather = {Ints(4, kIntCanary), Ints(5, kIntCanary)};
  std::vector<hepDispatchArgs_t> args;
  for (int r = 0; r < 2; ++r) {
    args.push_back(dispatch_args(hepLayoutFlat, x_[r], rows[r]));
    args[r].capacity = 2;
    args[r].row_tokens = tokens[r].data();
    args[r].gather = gather[r].data();
    args[r].gather_capacity = 4;
  }
  ranks_.dispatch(args);
  EXPECT_EQ(rows[0], rows_of({1, 3}) + canary_rows(1));
  EXPECT_EQ(tokens[0], Ints({0, 2, kIntCanary}));
  EXPECT_EQ(gather[0], Ints({0, 1, 1, -1}));
  EXPECT_EQ(rows[1], rows_of({1, 2}) + canary_rows(2));
  EXPECT_EQ(gather[1], Ints({0, -1, -1, 1, kIntCanary}));
  EXPECT_EQ(ranks_.counters(1).needed, 4);
  EXPECT_EQ(ranks_.counters(1).written, 2);
  EXPECT_EQ(ranks_.counters(1).overflow, 1);

  rows = {canary_rows(4), canary_rows(5)};
  for (int r = 0; r < 2; ++r) {
    args[r] = dispatch_args(hepLayoutExpertMajor, x_[r], rows[r]);
    args[r].capacity = 3;
  }
  ranks_.dispatch(args);
  EXPECT_EQ(rows[0], rows_of({1, 3, 3}) + canary_rows(1));
  EXPECT_EQ(rows[1], rows_of({1, 4, 4}) + canary_rows(2));
}

TEST_F(HostBackendExample, CombineLeavesDroppedRowsOut) {
  std::vector<Matrix> out = {canary_rows(3), canary_rows(2)};
  // Flat: rank 0 has dropped its row of rank 1's token 1, rank 1 all rows but the first.
  const std::vector<Matrix> flat = {rows_of({1, 2}), rows_of({10})};
  ranks_.combine({combine_args(hepLayoutFlat, hepWeightsNone, flat[0], out[0]),
                  combine_args(hepLayoutFlat, hepWeightsNone, flat[1], out[1])});
  EXPECT_EQ(out[0], rows_of({11, 0, 2}));
  EXPECT_EQ(out[1], rows_of({0, 0}));

  // Expert-major: of the two rows of rank 1's token 0 the second is dropped.
  const std::vector<Matrix> major = {rows_of({1, 2, 3, 4}), rows_of({10, 20})};
  ranks_.combine({combine_args(hepLayoutExpertMajor, hepWeightsNone, major[0], out[0]),
                  combine_args(hepLayoutExpertMajor, hepWeightsNone, major[1], out[1])});
  EXPECT_EQ(out[0], rows_of({11, 0, 5}));
  EXPECT_EQ(out[1], rows_of({20, 4}));
}

TEST_F(HostBackendExample, CombineSumsInEveryWeightMode) {
  std::vector<Matrix> rows = {canary_rows(4), canary_rows(5)};
  std::vector<hepDispatchArgs_t> args;
  for (int r = 0; r < 2; ++r) {
    args.push_back(dispatch_args(hepLayoutExpertMajor, x_[r], rows[r]));
    args[r].weights = weights_[r].data();
  }
  ranks_.dispatch(args);

  const std::vector<Matrix> flat = {rows_of({1, 2, 4}), rows_of({8, 16, 32, 64})};
  const std::vector<Matrix> major = {rows_of({1, 2, 4, 8}), rows_of({1, 2, 4, 8, 16})};
  const std::vector<Floats> flat_weights = {{1, 2, 4}, {0.5f, 0.25f, 0.125f, 2}};
  const std::vector<Floats> major_weights = {{8, 4, 2, 1}, {1, 1, 0.5f, 0.25f, 0.125f}};
  const auto expect = [&](hepLayout_t layout, hepWeightMode_t mode, const Matrix& first,
                          const Matrix& second) {
    const auto& y = layout == hepLayoutFlat ? flat : major;
    const auto& weights = layout == hepLayoutFlat ? flat_weights : major_weights;
    std::vector<Matrix> out = {canary_rows(3), canary_rows(2)};
    std::vector<hepCombineArgs_t> combines;
    for (int r = 0; r < 2; ++r) {
      combines.push_back(combine_args(layout, mode, y[r], out[r]));
      if (mode == hepWeightsRow) combines[r].row_weights = weights[r].data();
    }
    ranks_.combine(combines);
    EXPECT_EQ(out[0], first) << "layout " << layout << ", mode " << mode;
    EXPECT_EQ(out[1], second) << "layout " << layout << ", mode " << mode;
  };
  expect(hepLayoutFlat, hepWeightsNone, rows_of({9, 16, 2}), rows_of({32, 68}));
  expect(hepLayoutFlat, hepWeightsRow, rows_of({5, 4, 4}), rows_of({4, 144}));
  // 0.5 * 1 + 0.25 * 8, 2 * 16, (8 + 4) * 2; (0.125 + 16) * 32, 32 * 4 + 1 * 64
  expect(hepLayoutFlat, hepWeightsDispatched, rows_of({2.5f, 32, 24}), rows_of({516, 192}));
  // 1 + 1, 8, 2 + 4; 2 + 4, 8 + 16
  expect(hepLayoutExpertMajor, hepWeightsNone, rows_of({2, 8, 6}), rows_of({6, 24}));
  // 8 * 1 + 1 * 1, 0.25 * 8, 4 * 2 + 2 * 4; 1 * 2 + 0.5 * 4, 1 * 8 + 0.125 * 16
  expect(hepLayoutExpertMajor, hepWeightsRow, rows_of({9, 2, 16}), rows_of({4, 10}));
  // 0.5 * 1 + 0.25 * 1, 2 * 8, 8 * 2 + 4 * 4; 0.125 * 2 + 16 * 4, 32 * 8 + 1 * 16
  expect(hepLayoutExpertMajor, hepWeightsDispatched, rows_of({0.75f, 16, 32}),
         rows_of({64.0f, 272}));
}

TEST_F(HostBackendExample, DispatchWithoutWeightsCountsThemAsOneAndKeepsTheStoredOnes) {
  std::vector<Matrix> rows = {canary_rows(3), canary_rows(4)};
  std::vector<Floats> row_weights = {Floats(6, -1.0f), Floats(8, -1.0f)};
  std::vector<hepDispatchArgs_t> args;
  for (int r = 0; r < 2; ++r) {
    args.push_back(dispatch_args(hepLayoutFlat, x_[r], rows[r]));
    args[r].weights = weights_[r].data();
    args[r].row_weights = row_weights[r].data();
  }
  ranks_.dispatch(args);
  for (hepDispatchArgs_t& each : args) each.weights = nullptr;
  ranks_.dispatch(args);
  EXPECT_EQ(row_weights[0], Floats({1, 0, 1, 1, 1, 0}));

  const std::vector<Matrix> y = {rows_of({1, 2, 4}), rows_of({8, 16, 32, 64})};
  std::vector<Matrix> out = {canary_rows(3), canary_rows(2)};
  ranks_.combine({combine_args(hepLayoutFlat, hepWeightsDispatched, y[0], out[0]),
                  combine_args(hepLayoutFlat, hepWeightsDispatched, y[1], out[1])});
  EXPECT_EQ(out[0], rows_of({2.5f, 32, 24}));
}

TEST_F(HostBackendExample, OperationsWithAStreamAreRefused) {
  const auto stream = reinterpret_cast<hepStream_t>(uintptr_t{16});
  Matrix rows = canary_rows(3);
  EXPECT_EQ(ranks_.routing(0).update({nullptr, {0, kTopK}, hepIndexInt32}, stream).result(),
            hepErrorInvalidArgument);
  EXPECT_EQ(ranks_.routing(0)
                .dispatch({dispatch_args(hepLayoutFlat, x_[0], rows), {}}, {0, kTopK}, Step::kWhole,
                          stream)
                .result(),
            hepErrorInvalidArgument);
  EXPECT_EQ(ranks_.routing(0)
                .combine(combine_args(hepLayoutFlat, hepWeightsNone, rows, rows), {0, kTopK},
                         Step::kWhole, stream)
                .result(),
            hepErrorInvalidArgument);
}

TEST(HostBackend, PaddingRowsAreZeroUpToTheCapacity) {
  Options options;
  options.alignment = 8;
  Ranks ranks(options);
  ranks.update(kIndices, kTopK);
  const std::vector<Matrix> x = {rows_of({1, 2, 3}), rows_of({4, 5})};
  const std::vector<int64_t> capacities = {18, 12};
  std::vector<Matrix> rows = {canary_rows(18), canary_rows(18)};
  std::vector<Floats> weights = {Floats(18, -1.0f), Floats(18, -1.0f)};
  std::vector<Ints> sources = {Ints(18, kIntCanary), Ints(18, kIntCanary)};
  std::vector<Ints> tokens = {Ints(18, kIntCanary), Ints(18, kIntCanary)};
  std::vector<hepDispatchArgs_t> args;
  for (int r = 0; r < 2; ++r) {
    args.push_back(dispatch_args(hepLayoutExpertMajor, x[r], rows[r]));
    args[r].capacity = capacities[r];
    args[r].row_weights = weights[r].data();
    args[r].row_sources = sources[r].data();
    args[r].row_tokens = tokens[r].data();
  }
  ranks.dispatch(args);

  // Rank 0: two rows and six of padding for each expert, then two rows that nobody needs.
  EXPECT_EQ(rows[0], rows_of({1, 3, 0, 0, 0, 0, 0, 0, 3, 5, 0, 0, 0, 0, 0, 0}) + canary_rows(2));
  EXPECT_EQ(weights[0], Floats({1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, -1, -1}));
  EXPECT_EQ(sources[0], Ints({0, 0, -1, -1, -1, -1, -1, -1, 0, 1, -1, -1, -1, -1, -1, -1,
                              kIntCanary, kIntCanary}));
  EXPECT_EQ(tokens[0], Ints({0, 2, -1, -1, -1, -1, -1, -1, 2, 1, -1, -1, -1, -1, -1, -1, kIntCanary,
                             kIntCanary}));
  EXPECT_EQ(ranks.counters(0).needed, 16);
  EXPECT_EQ(ranks.counters(0).written, 16);
  EXPECT_EQ(ranks.counters(0).overflow, 0);

  // Rank 1: the capacity ends within the padding of the second expert.
  EXPECT_EQ(rows[1], rows_of({1, 4, 4, 0, 0, 0, 0, 0, 2, 5, 0, 0}) + canary_rows(6));
  EXPECT_EQ(ranks.counters(1).needed, 16);
  EXPECT_EQ(ranks.counters(1).written, 12);
  EXPECT_EQ(ranks.counters(1).overflow, 1);
}

TEST(HostBackend, RankWithoutTokensTakesPartWithNullPointers) {
  Ranks ranks(Options{});
  ranks.run([&](int rank) {
    const Ints indices = {2, 3};
    Ranks::expect_ok(
        ranks.update_one(rank, rank == 0 ? indices.data() : nullptr, {rank == 0 ? 1 : 0, kTopK}));

    // Rank 0 has the only token and receives nothing; rank 1 the other way round.
    const Matrix x = rank == 0 ? rows_of({3}) : Matrix();
    Matrix rows = rank == 0 ? Matrix() : canary_rows(1);
    hepDispatchArgs_t args = dispatch_args(hepLayoutFlat, x, rows);
    Ranks::expect_ok(ranks.dispatch_one(rank, args));
    EXPECT_EQ(rows, rank == 0 ? Matrix() : rows_of({3}));

    Matrix out = rank == 0 ? canary_rows(1) : Matrix();
    Ranks::expect_ok(
        ranks.combine_one(rank, combine_args(hepLayoutFlat, hepWeightsNone, rows, out)));
    EXPECT_EQ(out, rank == 0 ? rows_of({3}) : Matrix());
  });
}

TEST(HostBackend, TokenWithoutSelectionCombinesToZero) {
  Ranks ranks(Options{});
  ranks.update({{-1, -1}, {}}, kTopK);
  const Matrix none;
  Matrix out = canary_rows(1), no_out;
  ranks.combine({combine_args(hepLayoutFlat, hepWeightsNone, none, out),
                 combine_args(hepLayoutFlat, hepWeightsNone, none, no_out)});
  EXPECT_EQ(out, rows_of({0}));
}

TEST(HostBackend, ExpertOutOfRangeCountsAsNoneAndTheFirstIsReported) {
  Ranks ranks(Options{});
  const std::vector<int64_t> indices = {0, -1, int64_t{1} << 32, 4, -2, 1};
  EXPECT_FALSE(ranks.backend(0).bad_index().found);
  ranks.run([&](int rank) {
    Ranks::expect_ok(ranks.update_one(rank, indices.data(), {rank == 0 ? 3 : 0, 2}, hepIndexInt64));
  });
  const Backend::BadIndex bad = ranks.backend(0).bad_index();
  EXPECT_TRUE(bad.found);
  EXPECT_EQ(bad.token, 1);
  EXPECT_EQ(bad.k, 0);
  EXPECT_EQ(bad.value, int64_t{1} << 32);
  EXPECT_FALSE(ranks.backend(1).bad_index().found);

  hepRoutingCounts_t counts{};
  Ranks::expect_ok(ranks.routing(0).query(&counts, nullptr));
  EXPECT_EQ(counts.num_expert_rows, 2);
}

TEST(HostBackend, RowsInTheHeapAreReadInPlace) {
  Options options;
  options.heap_bytes = 1024;
  Ranks ranks(options);
  ranks.update({{2, -1}, {0, -1}}, kTopK);
  std::vector<Matrix> rows = {canary_rows(1), canary_rows(1)};
  const std::vector<Matrix> x = {rows_of({7}), rows_of({9})};
  std::vector<hepDispatchArgs_t> args;
  for (int r = 0; r < 2; ++r) {
    void* heap = at<char>(ranks.window(r), ranks.layout().heap + 256);
    std::memcpy(heap, x[r].data(), kHidden * 2);
    args.push_back(dispatch_args(hepLayoutFlat, x[r], rows[r]));
    args[r].x = heap;
  }
  ranks.dispatch(args);
  EXPECT_EQ(rows[0], rows_of({9}));
  EXPECT_EQ(rows[1], rows_of({7}));
  EXPECT_EQ(*at<uint16_t>(ranks.window(0), ranks.layout().published), 0) << "a copy was made";
}

TEST(HostBackend, RowsThatReachPastTheHeapAreRefused) {
  Options options;
  options.heap_bytes = 256;
  Ranks ranks(options);
  const std::vector<Ints> indices = {Ints(2 * 2, 0), {}};
  ranks.update(indices, kTopK);
  Matrix rows = canary_rows(2);
  hepDispatchArgs_t args = dispatch_args(hepLayoutFlat, rows, rows);
  args.x = at<char>(ranks.window(0), ranks.layout().heap + 256 - kHidden * 2);
  EXPECT_EQ(ranks.dispatch_one(0, args).result(), hepErrorInvalidArgument);
  EXPECT_EQ(ranks.backend(0).failure().result, hepSuccess);
}

TEST(HostBackend, PartialSumsAreRoundedOnceToNearestEven) {
  Options options;
  options.num_ranks = 1;
  options.max_top_k = 3;
  Ranks ranks(options);
  // 2^-8 is half a unit in the last place of 1.
  ranks.update({{0, 1, 2, /**/ 0, 1, -1, /**/ 0, -1, -1}}, 3);
  // Expert 0: tokens 0, 1, 2; expert 1: tokens 0, 1; expert 2: token 0.
  const Matrix y = rows_of({1, 1.0078125f, -0.0f, 0x1p-8f, 0x1p-8f, 0x1p-20f});
  Matrix out = canary_rows(3);
  ranks.combine({combine_args(hepLayoutExpertMajor, hepWeightsNone, y, out)});
  EXPECT_EQ(out, rows_of({1.0078125f, 1.015625f, -0.0f}));
}

// In FP32 (1 + 2^25) - 2^25 is 0, but (-2^25 + 2^25) + 1 is 1.
TEST(HostBackend, ContributionsOfARankAreAddedInAscendingExpertOrder) {
  Options options;
  options.num_ranks = 1;
  options.max_top_k = 3;
  Ranks ranks(options);
  ranks.update({{2, 1, 0}}, 3);
  const Matrix y = rows_of({1, 0x1p25f, -0x1p25f});
  Matrix out = canary_rows(1);
  ranks.combine({combine_args(hepLayoutExpertMajor, hepWeightsNone, y, out)});
  EXPECT_EQ(out, rows_of({0}));
}

TEST(HostBackend, PartialSumsAreAddedInAscendingRankOrder) {
  Options options;
  options.num_ranks = 3;
  options.num_experts = 3;
  options.max_top_k = 3;
  Ranks ranks(options);
  ranks.update({{2, 1, 0}, {}, {}}, 3);
  const std::vector<Matrix> y = {rows_of({1}), rows_of({0x1p25f}), rows_of({-0x1p25f})};
  std::vector<Matrix> out = {canary_rows(1), {}, {}};
  std::vector<hepCombineArgs_t> args;
  for (int r = 0; r < 3; ++r)
    args.push_back(combine_args(hepLayoutFlat, hepWeightsNone, y[r], out[r]));
  ranks.combine(args);
  EXPECT_EQ(out[0], rows_of({0}));
}

TEST(HostBackend, WeightedSumsUseFusedMultiplyAdd) {
  Options options;
  options.num_ranks = 1;
  Ranks ranks(options);
  ranks.update({{0, 1}}, kTopK);
  // (1 + 2^-23) (1 + 2^-7) is 1 + 2^-7 + 2^-23 + 2^-30, of which FP32 drops the last term.
  const Matrix y = rows_of({1, 1.0078125f});
  const Floats weights = {-(1 + 0x1p-7f + 0x1p-23f), 1 + 0x1p-23f};
  Matrix out = canary_rows(1);
  hepCombineArgs_t args = combine_args(hepLayoutExpertMajor, hepWeightsRow, y, out);
  args.row_weights = weights.data();
  ranks.combine({args});
  EXPECT_EQ(out, rows_of({0x1p-30f}));
}

TEST(HostBackend, NotANumberIsCanonicalAndOverflowInfinite) {
  Options options;
  options.num_ranks = 1;
  Ranks ranks(options);
  ranks.update({{0, -1, /**/ 0, 1}}, kTopK);
  Matrix y(3 * kHidden, 0x7f7f);  // the largest finite number
  std::fill_n(y.begin(), kHidden, 0xff81);
  Matrix out = canary_rows(2);
  ranks.combine({combine_args(hepLayoutExpertMajor, hepWeightsNone, y, out)});
  EXPECT_EQ(out, Matrix(kHidden, 0x7fff) + Matrix(kHidden, 0x7f80));
}

// Chunks, epochs and slots at work: many ranks, changing numbers of tokens, ranks running ahead.
TEST(HostBackend, ManyRanksRepeatOperationsWithChangingTokens) {
  constexpr int kRanks = 64, kRounds = 6;
  Options options;
  options.num_ranks = kRanks;
  options.num_experts = kRanks;
  options.max_tokens = 80;
  Ranks ranks(options);
  const auto tokens_of = [](int rank, int round) { return rank * 7 % 5 * 20 * (round % 3) / 2; };
  ranks.run([&](int rank) {
    for (int round = 0; round < kRounds; ++round) {
      const int num_tokens = tokens_of(rank, round);
      Ints indices;
      Matrix x, expected;
      for (int token = 0; token < num_tokens; ++token) {
        indices.push_back((rank + 1 + token) % kRanks);
        indices.push_back((rank + 2 + token) % kRanks);
        x = x + rows_of({static_cast<float>(token + round)});
        expected = expected + rows_of({static_cast<float>(2 * (token + round))});
      }
      Ranks::expect_ok(ranks.update_one(rank, indices, kTopK));
      hepRoutingCounts_t counts{};
      Ranks::expect_ok(ranks.routing(rank).query(&counts, nullptr));
      Matrix rows = canary_rows(static_cast<int>(counts.num_flat_rows));
      Ranks::expect_ok(ranks.dispatch_one(rank, dispatch_args(hepLayoutFlat, x, rows)));
      Matrix out = canary_rows(num_tokens);
      Ranks::expect_ok(
          ranks.combine_one(rank, combine_args(hepLayoutFlat, hepWeightsNone, rows, out)));
      EXPECT_EQ(out, expected) << "rank " << rank << ", round " << round;
    }
  });
}

}  // namespace
}  // namespace hep
