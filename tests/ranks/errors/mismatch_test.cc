// SPDX-License-Identifier: Apache-2.0
// Ranks that do not call the same operation alike get an error that says who called what, instead
// of wrong values.
#include <functional>
#include <string>

#include "ranks/spoilt_batch.h"
#include "ranks/support.h"

namespace {

using harness::world;

enum class Update { kBefore, kInTheDispatch };

// The last rank spoils its calls; all ranks make them, until one tells what was found.
void expect_mismatch(const std::string& what, hepMode_t mode, Update update,
                     hepOperation_t operation, const std::function<void(Batch&)>& spoil,
                     const Mentions& mentions) {
  const int last = world().num_ranks() - 1;
  hepConfig_t config = small_config();
  config.scale_bytes = 4;
  config.low_latency_tokens = Batch::kTokens;
  hepRoutingConfig_t place = HEP_ROUTING_CONFIG_INITIALIZER;
  place.mode = mode;
  run_ranks(config, [&](Rank& self) {
    Batch batch(self, config, &place);
    self.barrier();  // to allocate may wait for kernels on the device
    if (update == Update::kBefore)
      ASSERT_HEP(batch.update());
    else
      batch.update_in_the_dispatch();
    self.barrier();  // a failure ends an update whose records are still on the way
    if (self.rank == last) spoil(batch);
    hepResult_t result = hepSuccess;
    if (operation == hepOperationDispatch)
      result = hepDispatch(batch.routing.get(), &batch.dispatch, self.stream.get());
    else
      result = hepCombine(batch.routing.get(), &batch.combine, self.stream.get());
    EXPECT_EQ(result, world().backend() == hepBackendHost ? hepErrorMismatch : hepSuccess) << what;
    self.stream.synchronize();
    EXPECT_EQ(async_error(self), hepErrorMismatch) << what;
    const std::string sentence = hepGetLastError();
    expect_mentions(sentence, mentions);
    expect_mentions(sentence, {"rank " + std::to_string(last)});
    hepFailure_t failure = HEP_FAILURE_INITIALIZER;
    EXPECT_HEP(hepCommGetFailure(self.comm, &failure));
    EXPECT_EQ(failure.result, hepErrorMismatch) << what;
    self.barrier();
  });
  run_ranks(config, [&](Rank& self) { expect_working(self, config); });
}

// In both modes.
void expect_mismatch(const std::string& what, hepOperation_t operation,
                     const std::function<void(Batch&)>& spoil, const Mentions& mentions) {
  if (world().num_ranks() < 2) GTEST_SKIP() << "needs two ranks to disagree";
  for (const hepMode_t mode : {hepModeThroughput, hepModeLowLatency})
    expect_mismatch(what, mode, Update::kBefore, operation, spoil, mentions);
}

TEST(Mismatch, OfTheLayoutOfADispatchThatUpdatesIsReportedToAll) {
  if (world().num_ranks() < 2) GTEST_SKIP() << "needs two ranks to disagree";
  for (const hepMode_t mode : {hepModeThroughput, hepModeLowLatency})
    expect_mismatch("layout", mode, Update::kInTheDispatch, hepOperationDispatch,
                    [](Batch& batch) { batch.dispatch.layout = hepLayoutExpertMajor; },
                    {"dispatch 1", "flat", "expert-major"});
}

TEST(Mismatch, OfTheLayoutOfADispatchIsReportedToAll) {
  expect_mismatch("layout", hepOperationDispatch,
                  [](Batch& batch) { batch.dispatch.layout = hepLayoutExpertMajor; },
                  {"dispatch 1", "flat", "expert-major"});
}

TEST(Mismatch, OfTheTypeOfADispatchIsReportedToAll) {
  expect_mismatch("type", hepOperationDispatch,
                  [](Batch& batch) { batch.dispatch.type = hepTypeFloat16; },
                  {"dispatch 1", "hepTypeBfloat16", "hepTypeFloat16"});
}

TEST(Mismatch, OfTheHiddenSizeOfACallIsReportedToAll) {
  expect_mismatch("hidden", hepOperationDispatch, [](Batch& batch) { batch.dispatch.hidden = 56; },
                  {"dispatch 1", "hidden 64", "hidden 56"});
  expect_mismatch("hidden", hepOperationCombine, [](Batch& batch) { batch.combine.hidden = 8; },
                  {"combine 1", "hidden 64", "hidden 8"});
}

TEST(Mismatch, OfTheHiddenSizeOfADispatchThatUpdatesIsReportedToAll) {
  if (world().num_ranks() < 2) GTEST_SKIP() << "needs two ranks to disagree";
  for (const hepMode_t mode : {hepModeThroughput, hepModeLowLatency})
    expect_mismatch("hidden", mode, Update::kInTheDispatch, hepOperationDispatch,
                    [](Batch& batch) { batch.dispatch.hidden = 56; },
                    {"dispatch 1", "hidden 64", "hidden 56"});
}

TEST(Mismatch, OfTheQuantisationOfADispatchIsReportedToAll) {
  expect_mismatch("quantisation", hepOperationDispatch,
                  [](Batch& batch) {
                    batch.dispatch.type = hepTypeFloat8E4M3;
                    batch.dispatch.quantize = hepQuantizeFloat32;
                  },
                  {"dispatch 1", "none", "float32"});
}

TEST(Mismatch, OfTheLayoutOfACombineIsReportedToAll) {
  expect_mismatch("layout", hepOperationCombine,
                  [](Batch& batch) { batch.combine.layout = hepLayoutExpertMajor; },
                  {"combine 1", "flat", "expert-major"});
}

TEST(Mismatch, OfTheWeightModeOfACombineIsReportedToAll) {
  expect_mismatch("weight mode", hepOperationCombine,
                  [](Batch& batch) {
                    batch.combine.weight_mode = hepWeightsRow;
                    batch.combine.row_weights = batch.numbers.as<float>();
                  },
                  {"combine 1", "weight mode none", "weight mode row"});
}

TEST(Mismatch, OfTheTypeOfACombineIsReportedToAll) {
  expect_mismatch("type", hepOperationCombine,
                  [](Batch& batch) { batch.combine.type = hepTypeFloat16; },
                  {"combine 1", "hepTypeBfloat16", "hepTypeFloat16"});
}

TEST(Mismatch, OfWeightsOrScalesOfADispatchIsReportedToAll) {
  expect_mismatch("weights", hepOperationDispatch,
                  [](Batch& batch) { batch.dispatch.weights = batch.numbers.as<float>(); },
                  {"dispatch 1", "with weights", "without weights"});
  expect_mismatch("scales", hepOperationDispatch,
                  [](Batch& batch) { batch.dispatch.scales = batch.numbers.data(); },
                  {"dispatch 1", "with scales", "without scales"});
}

TEST(Mismatch, OfDenseWeightsIsThatOfWeights) {
  expect_mismatch("dense weights", hepOperationDispatch,
                  [](Batch& batch) { batch.dispatch.dense_weights = batch.numbers.as<float>(); },
                  {"dispatch 1", "with weights", "without weights"});
}

TEST(Mismatch, OfWeightsOrScalesOfADispatchThatUpdatesIsReportedToAll) {
  if (world().num_ranks() < 2) GTEST_SKIP() << "needs two ranks to disagree";
  for (const hepMode_t mode : {hepModeThroughput, hepModeLowLatency}) {
    expect_mismatch("weights", mode, Update::kInTheDispatch, hepOperationDispatch,
                    [](Batch& batch) { batch.dispatch.weights = batch.numbers.as<float>(); },
                    {"dispatch 1", "with weights", "without weights"});
    expect_mismatch("scales", mode, Update::kInTheDispatch, hepOperationDispatch,
                    [](Batch& batch) { batch.dispatch.scales = batch.numbers.data(); },
                    {"dispatch 1", "with scales", "without scales"});
  }
}

TEST(Mismatch, OfGradientsOfACombineIsReportedToAll) {
  expect_mismatch("gradients", hepOperationCombine,
                  [](Batch& batch) {
                    batch.combine.row_gradients = batch.numbers.as<float>();
                    batch.combine.gradients = batch.numbers.as<float>() + 512;
                  },
                  {"combine 1", "with gradients", "without gradients"});
}

// A rank without tokens has no weights, scales or gradients to give, and goes with whatever the
// others do.
TEST(Mismatch, RanksWithoutTokensNeedNotGiveWhatOthersGive) {
  if (world().num_ranks() < 2) GTEST_SKIP() << "needs a rank with tokens and one without";
  hepConfig_t config = small_config();
  config.scale_bytes = 4;
  run_ranks(config, [&](Rank& self) {
    Batch batch(self, config);
    self.barrier();
    // All tokens choose expert 0, so that the last rank has no rows either.
    const bool has_tokens = self.rank < world().num_ranks() - 1;
    ASSERT_HEP(harness::update_routing(
        batch.routing.get(), has_tokens ? batch.indices.data() : nullptr,
        has_tokens ? Batch::kTokens : 0, Batch::kTopK, hepIndexInt32, self.stream.get()));
    if (has_tokens) {
      batch.dispatch.weights = batch.numbers.as<float>();
      batch.dispatch.scales = batch.numbers.data();
      batch.combine.row_gradients = batch.numbers.as<float>();
      batch.combine.gradients = batch.numbers.as<float>() + 512;
    } else {
      batch.dispatch.x = batch.combine.out = nullptr;
    }
    EXPECT_HEP(hepDispatch(batch.routing.get(), &batch.dispatch, self.stream.get()));
    EXPECT_HEP(hepCombine(batch.routing.get(), &batch.combine, self.stream.get()));
    self.stream.synchronize();
    EXPECT_EQ(async_error(self), hepSuccess) << hepGetLastError();
    self.barrier();
  });
}

TEST(Mismatch, OfTheRoutingIsReportedToAll) {
  if (world().num_ranks() < 2) GTEST_SKIP() << "needs two ranks to disagree";
  const int last = world().num_ranks() - 1;
  const hepConfig_t config = small_config();
  run_ranks(config, [&](Rank& self) {
    Batch first(self, config), second(self, config);
    self.barrier();
    ASSERT_HEP(first.update());
    ASSERT_HEP(second.update());
    self.barrier();
    Batch& batch = self.rank == last ? second : first;
    hepDispatch(batch.routing.get(), &batch.dispatch, self.stream.get());
    self.stream.synchronize();
    EXPECT_EQ(async_error(self), hepErrorMismatch);
    expect_mentions(hepGetLastError(), {"rank " + std::to_string(last), "update 1", "update 2"});
    self.barrier();
  });
}

}  // namespace
